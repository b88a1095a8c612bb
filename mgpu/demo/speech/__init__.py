"""Text to speech and back, small: the stand-in for a speech model's weights.

``letters`` turns spelling into phones, ``phones`` says how each one sounds, ``synthesis`` makes
the sound, ``wav`` the file.
"""
