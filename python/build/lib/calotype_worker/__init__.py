"""The Python worker: PyTorch and diffusers behind the worker protocol.

`__main__` claims stdout and serves; `serve` is the process, `tick` the loop, `job` one generation; `pipelines` are
the model families, `samplers` the mathematics of the steps. The package knows no queue, no catalogue and no file
format of pictures: those are the orchestrator's.
"""

VERSION = "0.1.0"
