"use strict";

const TINY = 128;
const MODELS = ["student", "teacher"];
let about = null;

function begin(found) {
  about = found;
  element("run").textContent = about.run;
  document.title = `Student and teacher of ${about.run}`;
  element("prompt-field").hidden = about.prompts.length === 0;
  element("class-field").hidden = about.classes.length === 0;
  if (about.prompts.length > 0) element("prompt").value = about.prompts[0];
  for (const prompt of about.prompts) element("prompts").append(new Option(prompt, prompt));
  about.classes.forEach((name, number) => element("class").append(new Option(name, number)));
  for (const model of MODELS) {
    element(`${model}-steps`).value = about[model].steps;
    element(`${model}-guidance-field`).hidden = about[model].guidance === null;
    if (about[model].guidance !== null) element(`${model}-guidance`).value = about[model].guidance;
  }
  allow(true);
}

function allow(value) {
  element("draw").disabled = element("next").disabled = !value;
}

/* A field that is empty or no number is null, which the server refuses by its name. */
function numberIn(id) {
  const value = element(id).valueAsNumber;
  return Number.isFinite(value) ? value : null;
}

function wish(model) {
  const said = { model, seed: numberIn("seed"), steps: numberIn(`${model}-steps`) };
  if (about.prompts.length > 0) said.prompt = element("prompt").value;
  if (about.classes.length > 0) said.class = Number(element("class").value);
  if (about[model].guidance !== null) said.guidance = numberIn(`${model}-guidance`);
  return said;
}

function described(said) {
  if (about.prompts.length > 0) return said.prompt;
  return about.classes.length > 0 ? about.classes[said.class] : "no condition";
}

function counted(value, word) {
  const shown = Number.isInteger(value) ? value : value.toFixed(1);
  return `${shown} ${word}${value === 1 ? "" : "s"}`;
}

function milliseconds(value) {
  return value < 10 ? value.toFixed(1) : value.toFixed(0);
}

function clear(model) {
  element(`${model}-picture`).hidden = true;
  element(`${model}-facts`).textContent = "Nothing was drawn.";
}

async function draw(model) {
  const said = wish(model), image = element(`${model}-picture`), facts = element(`${model}-facts`);
  const figure = image.closest("figure");
  facts.textContent = "Drawing.";
  figure.setAttribute("aria-busy", "true");
  try {
    const found = await ask("draw", said);
    image.src = found.picture;
    image.alt = `The ${model}'s picture of ${described(said)}, seed ${said.seed}`;
    await image.decode();
    image.classList.toggle("tiny", image.naturalWidth < TINY);
    image.hidden = false;
    const time = `${milliseconds(found.milliseconds)} ms` + (about.points ? " for all points" : "");
    facts.textContent = `${counted(said.steps, "step")}, ${counted(found.evaluations, "network evaluation")}, ${time}`;
    return found;
  } finally {
    figure.removeAttribute("aria-busy");
  }
}

function factor(value) {
  return value >= 10 ? value.toFixed(0) : value.toFixed(1);
}

async function drawBoth() {
  allow(false);
  showError(null);
  element("ratio").textContent = "";
  const found = {};
  try {
    for (const model of MODELS) found[model] = await draw(model);
    const { student, teacher } = found;
    element("ratio").textContent =
      `The teacher took ${factor(teacher.evaluations / student.evaluations)} times as many network evaluations ` +
      `and ${factor(teacher.milliseconds / student.milliseconds)} times as long as the student.`;
  } catch (error) {
    showError(error);
    /* What is left from before was drawn of another wish. */
    for (const model of MODELS) if (!(model in found)) clear(model);
  } finally {
    allow(true);
  }
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  drawBoth();
});
element("next").addEventListener("click", () => {
  element("seed").value = (numberIn("seed") ?? -1) + 1;
  drawBoth();
});
ask("about").then(begin).catch(showError);
