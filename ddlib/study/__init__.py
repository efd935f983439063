"""What is measured: profiles, the plan of tasks, doing them, the `Study` of the notebooks."""

from .profiles import PROFILES, Profile, get_profile
from .study import Study

__all__ = ["PROFILES", "Profile", "Study", "get_profile"]
