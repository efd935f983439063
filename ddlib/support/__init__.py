"""What everything stands on and what knows nothing of distillation: errors, files, speed."""
