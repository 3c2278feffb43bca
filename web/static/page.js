// What a page does for whoever has a keyboard at hand; it reads, and all its forms work, without.
"use strict";

const typing = (element) =>
  element.matches("input:not([type=checkbox]):not([type=radio]), select, textarea");

// Keys that a page names: `data-key` on a button or link presses it, on a field goes there.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.repeat) return; // a key that is held down would judge one picture after the other
  if (event.key === "Escape" && typing(document.activeElement)) {
    document.activeElement.blur();
    return;
  }
  if (typing(document.activeElement)) return;
  const found = [...document.querySelectorAll("[data-key]")].find(
    (one) => one.dataset.key === event.key && !one.disabled,
  );
  if (!found) return;
  event.preventDefault();
  if (typing(found)) found.focus();
  else found.click();
});

// Back to a form that was refused, as it was left: what was selected and typed still is.
for (const link of document.querySelectorAll("a[data-back]")) {
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || history.length < 2) return;
    event.preventDefault();
    history.back();
  });
}

// A grid of pictures: arrows go from one to the next, space selects (as everywhere), shift with a
// click or an arrow selects all between, a selects all, n none.
for (const form of document.querySelectorAll("form[data-grid]")) {
  const boxes = [...form.querySelectorAll(".grid input[type=checkbox]:not(:disabled)")];
  const told = form.querySelector("[data-count]");
  let last = null;

  const count = () => {
    const chosen = boxes.filter((box) => box.checked).length;
    if (told) told.textContent = `${chosen} of ${boxes.length} selected`;
    for (const button of form.querySelectorAll("button[name=act]")) button.disabled = !chosen;
  };
  const between = (one, other, checked) => {
    const [first, end] = [boxes.indexOf(one), boxes.indexOf(other)].sort((a, b) => a - b);
    for (const box of boxes.slice(first, end + 1)) box.checked = checked;
  };
  const below = (box, way) => {
    const here = box.closest("li").getBoundingClientRect();
    const rows = boxes.filter((one) => {
      const there = one.closest("li").getBoundingClientRect();
      return Math.abs(there.left - here.left) < 4 && way * (there.top - here.top) > 4;
    });
    return way > 0 ? rows[0] : rows[rows.length - 1];
  };

  form.addEventListener("click", (event) => {
    if (!boxes.includes(event.target)) return;
    if (event.shiftKey && last) between(last, event.target, event.target.checked);
    last = event.target;
    count();
  });
  form.addEventListener("keydown", (event) => {
    const box = event.target;
    if (!boxes.includes(box)) return;
    if (event.key === "Enter") event.preventDefault(); // it would press the first button
    const place = boxes.indexOf(box);
    const next = {
      ArrowRight: boxes[place + 1],
      ArrowLeft: boxes[place - 1],
      ArrowDown: below(box, 1),
      ArrowUp: below(box, -1),
      Home: boxes[0],
      End: boxes[boxes.length - 1],
    }[event.key];
    if (!next) return;
    event.preventDefault();
    if (event.shiftKey) between(box, next, true);
    next.focus();
    last = next;
    count();
  });
  form.addEventListener("change", count);
  addEventListener("pageshow", count); // whoever comes back finds what was selected
  for (const button of form.querySelectorAll("button[data-select]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      for (const box of boxes) box.checked = button.dataset.select === "all";
      count();
    });
  }
  count();
}
