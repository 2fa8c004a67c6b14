"""The app's hooks at Procore: plan, apply, reconcile; with the extra ``procore``."""
