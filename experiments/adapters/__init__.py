"""Fine-tuning that trained LoRA on frozen weights, by retraining: is the hop through the adapter worth taking?"""
