"""The methods of distillation: what is learned (images) and from what (objectives)."""
