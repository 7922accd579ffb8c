"""Methods whose student learns the average velocity between any two times, by its derivative."""
