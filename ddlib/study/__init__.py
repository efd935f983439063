"""What is measured: profiles, the plan of tasks, running them, the notebooks' `Study` and the launcher."""
