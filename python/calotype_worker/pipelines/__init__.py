"""Model families behind one interface: load, encode, denoise, decode.

    family    the interface: `Family`, what it takes and what it gives
    parts     components from folders and checkpoints: configs, modules, tokenizers
    adapted   LoRA sets and embeddings over modules whose base stays
    sd        Stable Diffusion 1.x and 2.x
    sdxl      Stable Diffusion XL, base and refiner
    sd3, flux transformers over patches; `transformer` is what they share
    control   ControlNets for the UNets; `control_file` is their config from one file
    files     a diffusers folder or a single file (`checkpoint`), alike to the families; `given` is a part by itself
    layouts   where a component's parameters lie in one file, in any of the usual names
    fit       whether the parts of a model belong together

A family is a file here and a line in `registry`.
"""
