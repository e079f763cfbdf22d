"""Serving interface of applications: the served model and its class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras


class Served:
    """The part of an application that `mtl_keras.serving` reads.

    The methods have an answer that fits most applications; one that needs another
    overrides them.
    """

    def serving_model(self, model: keras.Model) -> keras.Model:
        """Returns the functional model that clients are to ask.

        Its inputs, by name, are what a request may hold, and its outputs, by name,
        what it is answered with: one signature each. Inputs that no output can be
        reached from are not asked for. The returned model shares the layers of
        `model`; it answers with predictions as clients want them, such as
        probabilities, strings or tags.

        A layer that is to be called otherwise in service needs no override here: it
        has a method `serving_call(*args, **kwargs)` with the arguments of `call`,
        which is called, on `keras.KerasTensor`s, in place of the layer. It returns
        `keras.KerasTensor`s: one of its arguments (a branch that is chosen for
        good), or what other layers make of them (a beam search in place of
        teacher forcing).

        Args:
            model: A trained model of `build`.

        Returns:
            `model` itself, unless overridden.
        """
        return model

    def class_names(self) -> Mapping[str, Sequence[str]]:
        """Returns the names of the classes, `{task: [name, …]}`.

        Tasks without classes, or whose classes have no names, are left out. A
        binary task with one probability `[batch, 1]` has two: first that of 0, then
        that of 1.
        """
        return {}

    def missing_values(self) -> Mapping[str, float]:
        """Returns what inputs are given that a `tf.train.Example` leaves out.

        `{input: number}`; inputs that are not named are given zeros, or "".
        """
        return {}
