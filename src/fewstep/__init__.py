"""fewstep: pretrained diffusion models turned into generators of one to four steps. The README shows how it reads."""
