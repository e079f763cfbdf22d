from inline_jobs import inline  # noqa: F401
from tiny_application import eagerly, tiny, undrawn  # noqa: F401
