"""Other toolkits on the same models and documents, judged by the same retrainings."""
