/* SPDX-License-Identifier: BSD-3-Clause */
/* Answers of the control, as JSON objects, made readable; and how sizes,
 * ages and names are written in every text that the tools print.
 *
 * Output goes to a stdio stream whose errors are looked at once, at the end
 * (tool_finish).  What comes from the replica is printed with its control
 * characters replaced.  A key that is missing is left out of the text: an
 * older or newer server is no error.
 */
#ifndef MCBUF_TOOLS_RENDER_H
#define MCBUF_TOOLS_RENDER_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <jansson.h>

/* Look up a dotted PATH, "speculation.bytes".  NULL, false: not there, or of
 * another type.
 */
extern json_t *render_find (const json_t *object, const char *path);
extern bool render_number (const json_t *object, const char *path,
                           uint64_t *n);
extern const char *render_text (const json_t *object, const char *path);

/* BYTES as "17 B", "4.0 KiB", "1.5 GiB". */
#define RENDER_SIZE_STRLEN 32
extern const char *render_size (uint64_t bytes, char text[RENDER_SIZE_STRLEN]);

/* How long ago TIME (RFC 3339) was: "3 s", "5 min", "2 h 10 min", "4 d 3 h".
 * False: TIME cannot be read.
 */
#define RENDER_AGE_STRLEN 48
extern bool render_age (const char *time, char text[RENDER_AGE_STRLEN]);

/* 'checkpoint 7 "label"' of an object {id, label, …}. */
extern void render_checkpoint (FILE *fp, const json_t *checkpoint);

/* The first line of mcbuf-status: state, checkpoint, age, what to do.  TARGET
 * is named in the commands that it recommends.
 */
extern void render_headline (FILE *fp, const json_t *status,
                             const char *target);

/* All of mcbuf-status, the headline first. */
extern void render_status (FILE *fp, const json_t *status, const char *target);

/* Checkpoints, oldest first, one a line under a heading. */
extern void render_list (FILE *fp, const json_t *list);

/* The answers to "commit" and to "seal", a line. */
extern void render_commit (FILE *fp, const json_t *reply);

/* What a promote, or a recovery, did: two lines.  WOULD: a dry run. */
extern void render_recovered (FILE *fp, const json_t *reply, bool would);

/* The same for recovery's check of the journal. */
extern void render_verified (FILE *fp, const json_t *reply);

/* Any other object: "key: value", a line each, nested keys dotted. */
extern void render_any (FILE *fp, const json_t *object);

/* STATUS in Prometheus' text exposition format (prometheus.c). */
extern void render_prometheus (FILE *fp, const json_t *status);

#endif /* MCBUF_TOOLS_RENDER_H */
