from tiny_application import eagerly, tiny  # noqa: F401
