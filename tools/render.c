/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <inttypes.h>
#include <string.h>

#include "common/host.h"
#include "tools/render.h"
#include "tools/tool.h"

json_t *
render_find (const json_t *object, const char *path)
{
  const json_t *at = object;

  while (at) {
    size_t n = strcspn (path, ".");
    char key[64];

    if (n >= sizeof key)
      return NULL;
    memcpy (key, path, n);
    key[n] = '\0';
    at = json_object_get (at, key);
    if (path[n] == '\0')
      break;
    path += n + 1;
  }
  return (json_t *) (uintptr_t) at;
}

bool
render_number (const json_t *object, const char *path, uint64_t *n)
{
  const json_t *value = render_find (object, path);

  if (json_is_integer (value) && json_integer_value (value) >= 0) {
    *n = json_integer_value (value);
    return true;
  }
  if (json_is_real (value) && json_real_value (value) >= 0 &&
      json_real_value (value) < 1e18) {
    *n = json_real_value (value);
    return true;
  }
  return false;
}

const char *
render_text (const json_t *object, const char *path)
{
  const char *text = json_string_value (render_find (object, path));

  return text && *text ? text : NULL;
}

const char *
render_size (uint64_t bytes, char text[RENDER_SIZE_STRLEN])
{
  static const char *const units[] = { "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
  double value = bytes / 1024.0;
  unsigned i = 0;

  if (bytes < 1024) {
    snprintf (text, RENDER_SIZE_STRLEN, "%" PRIu64 " B", bytes);
    return text;
  }
  /* 1023.95 and up would be printed as 1024.0. */
  for (; value >= 1023.95; i++)
    value /= 1024;
  snprintf (text, RENDER_SIZE_STRLEN, "%.1f %s", value, units[i]);
  return text;
}

bool
render_age (const char *time, char text[RENDER_AGE_STRLEN])
{
  uint64_t now = host_time_ns () / 1000000000, then, s;

  if (host_time_parse (time, &then) == -1)
    return false;
  then /= 1000000000;
  s = now > then ? now - then : 0;      /* the clocks of two hosts differ */

  if (s < 120)
    snprintf (text, RENDER_AGE_STRLEN, "%" PRIu64 " s", s);
  else if (s < 2 * 3600)
    snprintf (text, RENDER_AGE_STRLEN, "%" PRIu64 " min", s / 60);
  else if (s < 48 * 3600)
    snprintf (text, RENDER_AGE_STRLEN, "%" PRIu64 " h %" PRIu64 " min",
              s / 3600, s / 60 % 60);
  else
    snprintf (text, RENDER_AGE_STRLEN, "%" PRIu64 " d %" PRIu64 " h",
              s / 86400, s / 3600 % 24);
  return true;
}

void
render_checkpoint (FILE *fp, const json_t *checkpoint)
{
  const char *label = render_text (checkpoint, "label");
  uint64_t id = 0;

  (void) render_number (checkpoint, "id", &id);
  fprintf (fp, "checkpoint %" PRIu64, id);
  if (label) {
    fputs (" \"", fp);
    tool_put_safe (fp, label);
    putc ('"', fp);
  }
}

void
render_list (FILE *fp, const json_t *list)
{
  const json_t *checkpoint;
  size_t i;

  fprintf (fp, "%10s  %-24s  %9s  %10s  %s\n",
           "CHECKPOINT", "TIME", "EXTENTS", "SIZE", "LABEL");
  json_array_foreach (json_object_get (list, "checkpoints"), i, checkpoint) {
    const char *text = render_text (checkpoint, "time");
    const char *time = text ? text : "-";
    const char *label = render_text (checkpoint, "label");
    uint64_t id = 0, extents = 0, bytes = 0;
    char size[RENDER_SIZE_STRLEN];

    (void) render_number (checkpoint, "id", &id);
    (void) render_number (checkpoint, "extents", &extents);
    (void) render_number (checkpoint, "bytes", &bytes);
    fprintf (fp, "%10" PRIu64 "  ", id);
    tool_put_safe (fp, time);
    fprintf (fp, "%*s  %9" PRIu64 "  %10s%s",
             strlen (time) < 24 ? 24 - (int) strlen (time) : 0, "", extents,
             render_size (bytes, size), label ? "  " : "");
    if (label)
      tool_put_safe (fp, label);
    putc ('\n', fp);
  }
}

void
render_commit (FILE *fp, const json_t *reply)
{
  uint64_t n;

  if (render_number (reply, "sealed", &n))
    fprintf (fp, "sealed %" PRIu64 "\n", n);
  else if (render_number (reply, "checkpoint", &n))
    fprintf (fp, "checkpoint %" PRIu64 "\n", n);
  else
    render_any (fp, reply);
}

/* 'WORDS checkpoint 7 "label"', of a reply with "checkpoint" and "label". */
static void
put_outcome (FILE *fp, const char *words, const json_t *reply)
{
  const char *label = render_text (reply, "label");
  uint64_t id = 0;

  (void) render_number (reply, "checkpoint", &id);
  fprintf (fp, "%s checkpoint %" PRIu64, words, id);
  if (label) {
    fputs (" \"", fp);
    tool_put_safe (fp, label);
    putc ('"', fp);
  }
}

void
render_verified (FILE *fp, const json_t *reply)
{
  const json_t *damage, *note, *whole = json_object_get (reply, "recoverable");
  char size[RENDER_SIZE_STRLEN];
  uint64_t bytes = 0;
  size_t i;

  (void) render_number (reply, "verified_bytes", &bytes);
  json_array_foreach (json_object_get (reply, "damage"), i, damage) {
    const char *file = render_text (damage, "file");
    const char *what = render_text (damage, "what");
    uint64_t offset = 0, checkpoint = 0;

    (void) render_number (damage, "offset", &offset);
    fputs ("damage: ", fp);
    tool_put_safe (fp, file ? file : "?");
    fprintf (fp, ": offset %" PRIu64 ": ", offset);
    tool_put_safe (fp, what ? what : "?");
    if (render_number (damage, "checkpoint", &checkpoint))
      fprintf (fp, ": needed by checkpoint %" PRIu64, checkpoint);
    putc ('\n', fp);
  }
  if (json_array_size (json_object_get (reply, "damage")) == 0) {
    put_outcome (fp, "verified: whole up to", reply);
    fprintf (fp, "; %s read\n", render_size (bytes, size));
  }
  else if (json_is_integer (whole))
    fprintf (fp, "whole up to checkpoint %" JSON_INTEGER_FORMAT "; %s read\n",
             json_integer_value (whole), render_size (bytes, size));
  json_array_foreach (json_object_get (reply, "notes"), i, note) {
    fputs ("note: ", fp);
    tool_put_safe (fp, json_string_value (note));
    putc ('\n', fp);
  }
}

void
render_recovered (FILE *fp, const json_t *reply, bool would)
{
  uint64_t epochs = 0, bytes = 0, written = 0, generation = 0;
  char discarded[RENDER_SIZE_STRLEN], out[RENDER_SIZE_STRLEN];
  double seconds = json_number_value (json_object_get (reply, "seconds"));
  const json_t *disk;
  size_t i;

  (void) render_number (reply, "discarded_epochs", &epochs);
  (void) render_number (reply, "discarded_bytes", &bytes);
  (void) render_number (reply, "written_bytes", &written);
  (void) render_number (reply, "generation", &generation);

  put_outcome (fp, would ? "would recover to" :
               json_is_true (json_object_get (reply, "already")) ?
               "already recovered to" : "recovered to", reply);
  fprintf (fp, ", generation %" PRIu64 "\n%s ", generation,
           render_size (written, out));
  if (would)
    fputs ("to write", fp);
  else if (json_is_false (json_object_get (reply, "drained")))
    fputs ("are being written out", fp);
  else
    fprintf (fp, "written in %.3f s", seconds);
  if (!would || epochs > 0)
    fprintf (fp, "; %s of %" PRIu64 " uncommitted epoch%s %s",
             render_size (bytes, discarded), epochs, epochs == 1 ? "" : "s",
             would ? "to discard" : "discarded");
  putc ('\n', fp);
  json_array_foreach (json_object_get (reply, "without"), i, disk) {
    const char *name = json_string_value (disk);

    fputs ("disk ", fp);
    tool_put_safe (fp, name && *name ? name : "(default)");
    fputs (" joined later and is not part of it: its image must not be used\n", fp);
  }
}

static void
render_value (FILE *fp, const char *name, const json_t *value)
{
  const json_t *member;
  const char *key;
  size_t i;
  char path[256];

  switch (json_typeof (value)) {
  case JSON_OBJECT:
    json_object_foreach ((json_t *) (uintptr_t) value, key, member) {
      snprintf (path, sizeof path, "%s%s%s", name, *name ? "." : "", key);
      render_value (fp, path, member);
    }
    return;
  case JSON_ARRAY:
    json_array_foreach (value, i, member) {
      snprintf (path, sizeof path, "%s.%zu", name, i);
      render_value (fp, path, member);
    }
    return;
  default:
    break;
  }

  tool_put_safe (fp, name);
  fputs (": ", fp);
  switch (json_typeof (value)) {
  case JSON_STRING:
    tool_put_safe (fp, json_string_value (value));
    break;
  case JSON_INTEGER:
    fprintf (fp, "%" JSON_INTEGER_FORMAT, json_integer_value (value));
    break;
  case JSON_REAL:
    fprintf (fp, "%.6g", json_real_value (value));
    break;
  case JSON_TRUE:
    fputs ("yes", fp);
    break;
  case JSON_FALSE:
    fputs ("no", fp);
    break;
  default:
    fputs ("none", fp);
  }
  putc ('\n', fp);
}

void
render_any (FILE *fp, const json_t *object)
{
  render_value (fp, "", object);
}
