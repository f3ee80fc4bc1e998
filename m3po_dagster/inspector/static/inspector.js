// Keys for the previous and next page, and sliders that re-select while they move. Every page works without it.
"use strict";

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
  const name = { j: "next", ArrowRight: "next", k: "prev", ArrowLeft: "prev", u: "up" }[event.key];
  const link = name && document.querySelector(`a[data-key="${name}"]`);
  if (link) link.click();
});

// On a narrow window the notices would take the first screen for themselves.
if (window.matchMedia("(max-width: 480px)").matches) {
  for (const notice of document.querySelectorAll("details.note")) notice.open = false;
}

const sliders = document.getElementById("sliders");
if (sliders) {
  const outcome = document.getElementById("outcome");
  const point = document.getElementById("point");
  const save = document.getElementById("save");
  let waiting = null;
  let asked = null;

  const reselect = async () => {
    if (!sliders.reportValidity()) return;
    if (asked) asked.abort();
    asked = new AbortController();
    const query = new URLSearchParams(new FormData(sliders));
    try {
      const answer = await fetch(`${sliders.dataset.point}?${query}`, { signal: asked.signal });
      // The server escapes what it sends, also a refusal's sentence; the content security policy lets no script run.
      const parts = new DOMParser().parseFromString(await answer.text(), "text/html");
      outcome.innerHTML = (parts.getElementById("outcome") ?? parts.body).innerHTML;
      point.innerHTML = parts.getElementById("point")?.innerHTML ?? "";
      if (!answer.ok) return;
      history.replaceState(null, "", `${location.pathname}?${query}`);
    } catch (error) {
      if (error.name !== "AbortError") outcome.textContent = "The inspector does not answer: is it still running?";
    }
  };

  sliders.addEventListener("input", (event) => {
    const moved = event.target.dataset.moves;
    const name = moved || event.target.name;
    if (moved) document.getElementById(moved).value = event.target.value;
    else document.getElementById(`${name}-range`).value = event.target.value;
    save.querySelector(`[data-follows="${name}"]`).value = document.getElementById(name).value;
    clearTimeout(waiting);
    waiting = setTimeout(reselect, 60);
  });

  save.addEventListener("submit", (event) => {
    if (!sliders.reportValidity()) event.preventDefault();
  });
}
