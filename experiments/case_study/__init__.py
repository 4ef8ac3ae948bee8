"""One answer explained, from the prompt to the page that a person reads."""
