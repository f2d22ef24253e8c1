"use strict";
// One voice at a time: starting a player pauses the others.
document.addEventListener("play", (event) => {
  for (const player of document.querySelectorAll("audio")) {
    if (player !== event.target) player.pause();
  }
}, true);
