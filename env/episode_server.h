/*
 * assay-worker --episodes: many episodes in one process, asked for by assayd.
 *
 * The messages are docs/protocol.md, "Episode hosts".
 */
#pragma once

/* Answers on the stream socket `fd` until it closes. Returns the exit status. */
int episode_serve(int fd);
