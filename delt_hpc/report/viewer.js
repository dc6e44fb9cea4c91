// Pictures and charts enlarged on a click; arrow keys and buttons go through those of the same group.
const viewer = document.getElementById("viewer");
const frame = viewer.querySelector(".frame"), caption = viewer.querySelector(".caption");
let group = [], place = 0;

function show(to) {
  place = (to + group.length) % group.length;
  const button = group[place];
  const media = button.querySelector(".pics") || button.closest("figure").querySelector("svg");
  frame.replaceChildren(media.cloneNode(true));
  caption.textContent = button.dataset.caption;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-caption]");
  if (button) {
    const around = button.closest(".panel, .charts");
    group = [...around.querySelectorAll("button[data-caption]")];
    viewer.classList.toggle("single", group.length < 2);
    show(group.indexOf(button));
    viewer.showModal();
  } else if (event.target.closest("[data-step]")) {
    show(place + Number(event.target.closest("[data-step]").dataset.step));
  } else if (event.target === viewer) {
    viewer.close();
  }
});

viewer.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) show(place + step);
});
