"""The web app: runs the study with people and states what it shows."""
