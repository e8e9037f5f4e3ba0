"""Samplers: from noise to a latent picture in a few evaluations of the model.

    scheduler_config.json -> NoiseSchedule --plan(sampler, schedule, steps)--> SamplerRun

      for each evaluation i:   scale_input(i) -> the model at timestep(i) -> step(i)

`schedule` knows the model's noise, `spacing` the curves of noise levels, `plan` which evaluations a run makes,
`level` what a level is, `run` one run, and each other file how one family of samplers gets from one level to the
next. They follow diffusers' schedulers, and k-diffusion where diffusers has none; `tests/test_samplers.py` holds them
to it, and to the native worker's reference values. All levels are numbers of the host: a step costs no
synchronisation. Nothing here knows a model or a seed: noise comes from the caller.
"""
