"""Runs the code of cards, as a user who has diffusers alone: ``card_script.py GIVEN.pt OUT.pt``.

``given``: for each folder the code of its card, the prompts and the latents in the place of the
card's own, and the seed of the generator.
"""

import sys
import warnings

import diffusers
import torch

asked: dict[str, object] = {}
found: dict[str, object] = {}


def called(original):
    def call(pipe, prompt, **arguments):
        generator = torch.Generator().manual_seed(asked["seed"])
        # Flow schedulers draw from the process' own generator.
        torch.manual_seed(asked["seed"])
        network = pipe.components.get("unet") or pipe.transformer
        latents = asked["latents"].to(network.dtype)
        more = {"latents": latents, "generator": generator, "output_type": "np"}
        pictures = original(pipe, list(asked["prompts"]), **{**arguments, **more}).images
        found[asked["name"]] = {
            "pictures": torch.from_numpy(pictures).permute(0, 3, 1, 2),
            "arguments": {name: value for name, value in arguments.items() if name != "generator"},
            "prompt": prompt,
            "dtype": str(network.dtype),
        }
        return type(asked["result"])("Result", (), {"images": pipe.image_processor.numpy_to_pil(pictures)})

    return call


if __name__ == "__main__":
    # What other libraries will remove one day is an error here, so that cards do not say it.
    warnings.simplefilter("error", FutureWarning)
    given = torch.load(sys.argv[1], weights_only=True)
    for name in {line.split()[-1] for each in given.values() for line in each["code"].splitlines() if "import" in line}:
        if name != "torch":
            cls = getattr(diffusers, name)
            cls.__call__ = called(cls.__call__)
    for name, values in given.items():
        asked.update(values, name=name, result=object)
        exec(compile(values["code"], f"{name}/README.md", "exec"), {"__name__": "__main__"})
    assert not any(name.partition(".")[0] == "fewstep" for name in sys.modules)
    torch.save(found, sys.argv[2])
