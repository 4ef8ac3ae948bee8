"""What the two command lines share. Nothing here imports anything heavy before arguments are parsed."""
