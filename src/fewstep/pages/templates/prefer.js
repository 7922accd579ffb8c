"use strict";

const KEYS = { ArrowLeft: "left", ArrowDown: "none", ArrowRight: "right" };
const TINY = 128;
let state = null;
/* Nobody answers before both pictures are there, nor twice to one pair. */
let ready = false;

function allow(value) {
  ready = value;
  for (const choice of ["left", "none", "right"]) element("choose-" + choice).disabled = !value;
}

async function load(side, place) {
  const image = element(side);
  image.alt = `The ${side} picture of pair ${place + 1}`;
  image.src = `picture/${place}/${side}`;
  try {
    await image.decode();
  } catch {
    throw new Error("A picture of this pair cannot be read; tell whoever started this page.");
  }
  image.classList.toggle("tiny", image.naturalWidth < TINY);
}

async function show(found) {
  state = found;
  const { done, total, pair } = state;
  element("progress").textContent = `${state.rater}: ${done} of ${total} pairs answered.`;
  element("bar").max = total;
  element("bar").value = done;
  element("undo").disabled = done === 0;
  element("question").hidden = pair === null;
  element("end").hidden = pair !== null;
  allow(false);
  if (pair === null) return;
  element("asked").hidden = pair.caption === "";
  element("caption").textContent = pair.caption;
  await Promise.all([load("left", pair.place), load("right", pair.place)]);
  allow(true);
}

async function tell(name, said) {
  allow(false);
  element("undo").disabled = true;
  try {
    const found = await ask(name, said);
    showError(null);
    await show(found);
  } catch (error) {
    showError(error);
    /* Another window may have answered: what is shown is what the server asks. */
    await ask("state").then(show).catch(showError);
  }
}

function choose(choice) {
  if (ready) tell("answer", { place: state.pair.place, choice });
}

function undo() {
  if (state !== null && !element("undo").disabled) tell("undo", { place: state.done - 1 });
}

for (const choice of ["left", "none", "right"]) {
  element("choose-" + choice).addEventListener("click", () => choose(choice));
}
element("undo").addEventListener("click", undo);
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (!(event.key in KEYS) && event.key !== "Backspace") return;
  event.preventDefault();
  if (event.repeat) return;
  if (event.key === "Backspace") undo();
  else choose(KEYS[event.key]);
});
ask("state").then(show).catch(showError);
