"use strict";

/* What both pages do: ask the server that they came from, and show one sentence of what is wrong. */

async function ask(name, said) {
  const options = said === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(said),
  };
  let answer;
  try {
    answer = await fetch(name, options);
  } catch {
    throw new Error("There is no answer; is the command still running in its terminal?");
  }
  let value;
  try {
    value = await answer.json();
  } catch {
    throw new Error("The answer cannot be read; look at the terminal of the command.");
  }
  if (!answer.ok) throw new Error(value.error);
  return value;
}

function element(id) {
  return document.getElementById(id);
}

function showError(error) {
  element("error").textContent = error === null ? "" : error.message;
  element("error").hidden = error === null;
}
