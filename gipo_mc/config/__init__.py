from gipo_mc.config.schema import *  # noqa: F403
