"""Consumers to try the broker with, on a machine without a GPU.

Four services, each a process of its own that speaks the HTTP of the services people run: image,
tts, stt and language. What they make is real (a picture, speech, a transcript, text) and made on
the CPU by small programs written for this; what is simulated is the GPU memory they hold and the
time that loading takes.
"""
