"""The folder that Nuclio builds a function of CVAT from: `function.yaml` and `main.py`."""
