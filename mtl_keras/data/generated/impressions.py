"""Generated behaviour of a shop's visitors: impressions, clicks, conversions.

Pure NumPy, over many users at once; the TensorFlow Datasets builder around it is
in `behaviour.py`.

The rules, with σ the logistic function:

- A user u has a taste `z_u`, an item i a position `q_i`, both in R^4, and their
  affinity is `a = z_u · q_i / 2`. An item has a price and a category, which tells
  most of its position.
- **Exposure.** Of four random items the user is shown the one with the highest
  affinity plus Gumbel noise: impressions are not a random sample of items.
- **Delayed interest.** Clicking an item of category k makes category `k + 1`
  wanted two clicks later, and k itself unwanted at once:
  `d = +1` where the item's category follows the one clicked before the last
  click, `-1` where it is the last click's own. The same clicks in another order
  give other interests.
- **Click.** `P(click) = σ(1.4 a + 2 d - 2.4)`.
- **Conversion.** `P(conversion | click) = σ(1.6 a + 1.2 d - price - 1)`, defined
  for every impression, clicked or not. Affinity drives both, so that clicked
  impressions convert more readily than others: the selection bias.
- **Watch time** of a click is log-normal: `exp(2.5 + 0.7 a + 0.3 d + 0.5 ε)`
  seconds.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

LATENT = 4
_OWN_POSITION = 0.5
CATEGORIES = 8
HISTORY = 10
"""Clicks that a sample remembers."""

SHORTEST, LONGEST = 5, 60
"""Fewest and most impressions of one user."""

_CANDIDATES = 4
_USERS_AT_ONCE = 4_096
MEAN_LENGTH = 20
"""About as many impressions has a user on average."""

Table = dict[str, np.ndarray]


class World:
    """Items, and the rules by which users meet them.

    Args:
        num_items: Number of items; their ids are 1 to `num_items`.
        seed: Seed of items and users.
    """

    def __init__(self, num_items: int, seed: int):
        rng = np.random.default_rng([seed, 0])
        self.num_items = num_items
        self._seed = seed
        # Row 0 stands for "no item".
        self.category = rng.integers(1, CATEGORIES + 1, num_items + 1)
        self.category[0] = 0
        centres = rng.normal(size=(CATEGORIES + 1, LATENT))
        own = rng.normal(size=(num_items + 1, LATENT))
        self.position = np.sqrt(1 - _OWN_POSITION**2) * centres[self.category]
        self.position = (self.position + _OWN_POSITION * own).astype(np.float32)
        self.price = rng.gamma(2.0, 0.4, num_items + 1).astype(np.float32)

    def users(self, samples: int) -> Iterator[Table]:
        """Simulates users until they have had `samples` impressions.

        Memory does not grow with `samples`.

        Args:
            samples: Impressions in all.

        Yields:
            Tables of whole users, ordered by user and time: `{column: [rows]}`.
        """
        first_user, block = 1, 0
        while samples > 0:
            rng = np.random.default_rng([self._seed, 1, block])
            spread = rng.exponential(MEAN_LENGTH - SHORTEST, _USERS_AT_ONCE)
            lengths = np.minimum(SHORTEST + spread.astype(np.int64), LONGEST)
            ends = np.cumsum(lengths)
            count = min(int(np.searchsorted(ends, samples)) + 1, len(lengths))
            lengths = lengths[:count]
            lengths[-1] -= max(0, int(ends[count - 1]) - samples)
            yield self._simulate(first_user + np.arange(count), lengths, rng)
            samples -= int(lengths.sum())
            first_user += count
            block += 1

    def _simulate(
        self, users: np.ndarray, lengths: np.ndarray, rng: np.random.Generator
    ) -> Table:
        count = len(users)
        taste = rng.normal(size=(count, LATENT)).astype(np.float32)
        everyone = np.arange(count)
        history = np.zeros((count, HISTORY), np.int64)
        steps = []
        for step in range(int(lengths.max())):
            item, affinity = self._expose(taste, rng)
            category = self.category[item]
            interest = self._interest(history, category)
            click_p = _logistic(1.4 * affinity + 2.0 * interest - 2.4)
            conversion_p = _logistic(
                1.6 * affinity + 1.2 * interest - self.price[item] - 1.0
            )
            click = rng.random(count) < click_p
            would_convert = rng.random(count) < conversion_p
            noise = rng.normal(size=count)
            seconds = np.exp(2.5 + 0.7 * affinity + 0.3 * interest + 0.5 * noise)
            steps.append(
                {
                    "user_id": users,
                    "item_id": item,
                    "category": category,
                    "price": self.price[item],
                    "impressions_before": np.full(count, step, np.float32),
                    "history_items": history.copy(),
                    "history_categories": self.category[history],
                    "click": click.astype(np.int64),
                    "conversion": (click & would_convert).astype(np.int64),
                    "watch_time": np.where(click, seconds, 0.0).astype(np.float32),
                    "click_probability": click_p.astype(np.float32),
                    "conversion_probability": conversion_p.astype(np.float32),
                    "conversion_if_clicked": would_convert.astype(np.int64),
                    "part": (step + 0.5) / lengths,
                }
            )
            clicked = everyone[click]
            history[clicked, :-1] = history[clicked, 1:]
            history[clicked, -1] = item[clicked]
        mask = np.arange(len(steps))[None] < lengths[:, None]
        return {
            name: np.stack([step[name] for step in steps], axis=1)[mask]
            for name in steps[0]
        }

    def _expose(
        self, taste: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the item that each user is shown, and their affinity."""
        shape = (len(taste), _CANDIDATES)
        candidates = rng.integers(1, self.num_items + 1, shape)
        affinity = np.einsum("ud,ucd->uc", taste, self.position[candidates])
        affinity /= np.sqrt(LATENT)
        chosen = np.argmax(affinity + rng.gumbel(size=shape), axis=1)[:, None]
        return (
            np.take_along_axis(candidates, chosen, 1)[:, 0],
            np.take_along_axis(affinity, chosen, 1)[:, 0],
        )

    def _interest(self, history: np.ndarray, category: np.ndarray) -> np.ndarray:
        last = self.category[history[:, -1]]
        before = self.category[history[:, -2]]
        wanted = np.where(before > 0, before % CATEGORIES + 1, 0)
        return (category == wanted).astype(np.float32) - (category == last)


def _logistic(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))
