/* SPDX-License-Identifier: BSD-3-Clause */
/* Control verbs: a line of text in, a line of JSON out. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "replica/internal.h"
#include "replica/json.h"

/* What a verb leaves behind: JSON, or why it was refused. */
struct answer {
  bool local;
  uint64_t generation;          /* whoever asks means this one; 0: whatever it is */
  json_t *json;                 /* or a line: */
  char *line;
  struct mcerror err;
};

static int
usage (struct answer *a, const char *text)
{
  errno = EINVAL;
  return mcerror_set (&a->err, MCEXIT_USAGE, "%s", text);
}

/* A decimal number and nothing else. */
static int
parse_number (const char *text, uint64_t *number)
{
  uint64_t n = 0;

  if (*text == '\0')
    goto bad;
  for (; *text; text++)
    if (*text < '0' || *text > '9' || __builtin_mul_overflow (n, 10, &n) ||
        __builtin_add_overflow (n, *text - '0', &n))
      goto bad;
  *number = n;
  return 0;

 bad:
  errno = EINVAL;
  return -1;
}

/* The G of WORD, generation=G, for VERB. */
static int
parse_generation (const char *verb, const char *word, uint64_t *generation,
                  struct answer *a)
{
  if (parse_number (word + strlen ("generation="), generation) == 0 &&
      *generation > 0)
    return 0;
  errno = EINVAL;
  return mcerror_set (&a->err, MCEXIT_USAGE,
                      "%s: generation= takes a number from 1", verb);
}

/* The next word of *REST, NULL at the end. */
static char *
next_word (char **rest)
{
  char *word = *rest + strspn (*rest, " \t");

  if (*word == '\0')
    return NULL;
  *rest = word + strcspn (word, " \t");
  if (**rest)
    *(*rest)++ = '\0';
  return word;
}

static bool
valid_label (const char *label)
{
  json_t *check = json_string (label);          /* refuses what is not UTF-8 */
  bool ok = check != NULL && strlen (label) <= JOURNAL_LABEL_MAX;

  json_decref (check);
  for (const char *p = label; *p && ok; p++)
    ok = (unsigned char) *p >= 0x20 && *p != 0x7f;
  return ok;
}

static int
verb_seal (struct replica *r, char *args, struct answer *a)
{
  uint64_t sealed, generation = a->generation;
  const char *word = next_word (&args);

  if (word && (strncmp (word, "generation=", 11) != 0 || next_word (&args)))
    return usage (a, "seal: takes generation=G, and nothing else");
  if (word && parse_generation ("seal", word, &generation, a) == -1)
    return -1;
  if (replica_seal (r, generation, &sealed, &a->err) == -1)
    return -1;
  a->json = json_pack ("{s:I, s:I}", "sealed", (json_int_t) sealed,
                       "open_epoch", (json_int_t) sealed + 1);
  return 0;
}

static int
verb_commit (struct replica *r, char *args, struct answer *a)
{
  struct commit_request req = { .epoch = 0 };
  struct commit_answer answer;
  bool given = false;

  while (*(args += strspn (args, " \t"))) {
    char *word;

    if (strncmp (args, "label=", 6) == 0) {
      req.label = args + 6;
      if (!valid_label (req.label))
        return usage (a, "commit: label= is not UTF-8, has control characters, or is longer than 255 bytes");
      break;
    }
    word = next_word (&args);
    if (strncmp (word, "epoch=", 6) == 0 && !req.has_epoch) {
      if (parse_number (word + 6, &req.epoch) == -1)
        return usage (a, "commit: epoch= takes a number");
      req.has_epoch = true;
    }
    else if (strncmp (word, "generation=", 11) == 0 && !given) {
      if (parse_generation ("commit", word, &req.generation, a) == -1)
        return -1;
      given = true;
    }
    else
      return usage (a, "commit: takes epoch=N, generation=G, and label=TEXT last, each once");
  }
  if (!given)
    req.generation = a->generation;
  if (replica_commit (r, &req, &answer, &a->err) == -1)
    return -1;
  a->json = json_pack ("{s:I, s:I, s:I, s:I, s:I}",
                       "checkpoint", (json_int_t) answer.checkpoint,
                       "epoch", (json_int_t) answer.epoch,
                       "extents", (json_int_t) answer.extents,
                       "bytes", (json_int_t) answer.bytes,
                       "latency_us", (json_int_t) answer.latency_us);
  return 0;
}

static int
verb_status (struct replica *r, char *args, struct answer *a)
{
  if (next_word (&args))
    return usage (a, "status: takes no argument");
  a->line = status_json (r);
  return 0;
}

static int
verb_list (struct replica *r, char *args, struct answer *a)
{
  if (next_word (&args))
    return usage (a, "list: takes no argument");
  /* The control export's reply has to fit into it. */
  a->line = list_json (r, a->local ? 0 : REPLICA_CONTROL_SIZE - 128);
  return 0;
}

static int
verb_promote (struct replica *r, char *args, struct answer *a)
{
  struct promote_answer p;
  const char *to = NULL;
  bool scratch;

  args += strspn (args, " \t");
  scratch = strcmp (args, "scratch") == 0;
  if (*args && !scratch) {
    if (strncmp (args, "to=", 3) != 0 || args[3] == '\0')
      return usage (a, "promote: takes to=NUMBER, LABEL or TIME, to the end of the line, or scratch");
    to = args + 3;
  }
  if (replica_promote (r, to, scratch, &p, &a->err) == -1)
    return -1;
  a->json = json_pack ("{s:I, s:o, s:I, s:I, s:I, s:I, s:s, s:f, s:b, s:b}",
                       "checkpoint", (json_int_t) p.checkpoint.id,
                       "label", p.checkpoint.label[0] ?
                         json_text (p.checkpoint.label) : json_null (),
                       "discarded_bytes", (json_int_t) p.discarded_bytes,
                       "discarded_epochs", (json_int_t) p.discarded_epochs,
                       "written_bytes", (json_int_t) p.backlog,
                       "generation", (json_int_t) p.generation,
                       "state", replica_state_word (JOURNAL_PROMOTED),
                       "seconds", p.latency_ns / 1e9,
                       "drained", (int) p.drained,
                       "already", (int) p.already);
  if (a->json) {
    json_t *without = without_json (r);

    if (without && json_object_set_new (a->json, "without", without) == -1) {
      json_decref (a->json);
      a->json = NULL;
    }
  }
  return 0;
}

static int
verb_resync (struct replica *r, char *args, struct answer *a)
{
  const char *word = next_word (&args);
  bool overwrite = word != NULL;

  if ((word && strcmp (word, "overwrite") != 0) || next_word (&args))
    return usage (a, "resync: takes nothing, or overwrite");
  if (replica_resync_in (r, a->generation, overwrite, &a->err) == -1)
    return -1;
  SCOPED_LOCK (&r->lock);
  a->json = json_pack ("{s:s, s:I}", "state", replica_state_word (r->state),
                       "generation", (json_int_t) r->generation);
  return 0;
}

static int
verb_reset (struct replica *r, char *args, struct answer *a)
{
  const char *name = next_word (&args);
  size_t len = name ? strlen (name) : 0, suffix = strlen ("@scratch");
  uint64_t checkpoint;
  unsigned disk;

  if (name == NULL || next_word (&args) || len < suffix ||
      strcmp (name + len - suffix, "@scratch") != 0)
    return usage (a, "reset: takes NAME@scratch");
  if (replica_find_disk (r, name, len - suffix, &disk) == -1)
    return usage (a, "reset: no disk has that name");
  if (scratch_reset (r, disk, &checkpoint) == -1) {
    int saved = errno;
    SCOPED_LOCK (&r->lock);

    errno = saved;
    if (saved == ESHUTDOWN || saved == ENOENT || saved == EIO)
      return mcerror_set (&a->err, MCEXIT_REFUSED, "cannot reset %s: replica is %s%s%s",
                          name, replica_state_word (r->state),
                          r->has_checkpoint ? "" : " and no checkpoint exists: commit first",
                          r->state == JOURNAL_PROMOTED ?
                          ", this copy is the disk: NAME@promoted serves it" :
                          r->state == JOURNAL_FAILED ? ": resync overwrite leads out of that" : "");
    return mcerror_set (&a->err, MCEXIT_USAGE, "cannot reset %s: %m", name);
  }
  a->json = json_pack ("{s:s, s:I}", "reset", name, "checkpoint",
                       (json_int_t) checkpoint);
  return 0;
}

/* divergence [disk=NAME] [from=OFFSET] */
static int
verb_divergence (struct replica *r, char *args, struct answer *a)
{
  const char *word, *name = r->disks[0].name;
  uint64_t from = 0;
  unsigned disk;

  while ((word = next_word (&args)) != NULL) {
    if (strncmp (word, "disk=", 5) == 0)
      name = word + 5;
    else if (strncmp (word, "from=", 5) != 0 ||
             parse_number (word + 5, &from) == -1)
      return usage (a, "divergence: takes disk=NAME and from=OFFSET");
  }
  if (replica_find_disk (r, name, strlen (name), &disk) == -1)
    return usage (a, "divergence: no disk has that name");
  a->line = divergence_json (r, disk, from);
  return 0;
}

static int
verb_shutdown (struct replica *r, char *args, struct answer *a)
{
  void (*fn) (void);

  if (next_word (&args))
    return usage (a, "shutdown: takes no argument");
  {
    SCOPED_LOCK (&r->lock);
    fn = r->shutdown;
  }
  if (fn == NULL) {
    errno = EPERM;
    return mcerror_set (&a->err, MCEXIT_REFUSED,
                        "cannot shut down: this server does not take that verb");
  }
  fn ();
  a->json = json_pack ("{s:b}", "shutdown", 1);
  return 0;
}

static const struct verb {
  const char *name;
  int (*fn) (struct replica *r, char *args, struct answer *a);
  bool remote;                  /* on the NBD control export too */
} verbs[] = {
  { "seal", verb_seal, true },
  { "commit", verb_commit, true },
  { "status", verb_status, true },
  { "list", verb_list, true },
  { "promote", verb_promote, false },
  { "resync", verb_resync, true },
  { "reset", verb_reset, false },
  { "divergence", verb_divergence, false },
  { "shutdown", verb_shutdown, false },
};

static int
carry_out (struct replica *r, bool local, char *request, struct answer *a)
{
  char *rest = request;
  const char *word = next_word (&rest);

  if (word == NULL)
    return usage (a, "empty request: a verb is needed");
  for (size_t i = 0; i < sizeof verbs / sizeof verbs[0]; i++)
    if (strcmp (word, verbs[i].name) == 0) {
      if (local || verbs[i].remote)
        return verbs[i].fn (r, rest, a);
      errno = EPERM;
      return mcerror_set (&a->err, MCEXIT_REFUSED,
                          "%s: only on the local control socket, %s/control",
                          word, r->dir);
    }
  return usage (a, "unknown verb: seal, commit, status, list, promote, resync, reset, divergence and shutdown are known");
}

/* The errors that NBD knows. */
static int
nbd_errno (int errnum)
{
  switch (errnum) {
  case EPERM: case EIO: case ENOMEM: case EINVAL: case ENOSPC: case ESHUTDOWN:
    return errnum;
  default:
    return EIO;
  }
}

/* An error may quote what the client sent, or a path. */
static char *
refusal_line (const struct mcerror *err)
{
  return json_line (json_pack ("{s:o, s:i}", "error", json_text (err->text),
                               "code", (int) err->code));
}

static int
control (struct replica *r, bool local, uint64_t generation,
         const char *request, size_t len, char **reply)
{
  bool stopping;
  struct answer a = { .local = local, .generation = generation,
                      .err = { .code = MCEXIT_USAGE } };
  CLEANUP_FREE char *copy = NULL;
  int result, saved;

  while (len > 0 && (request[len - 1] == '\0' || request[len - 1] == '\n' ||
                     request[len - 1] == '\r'))
    len--;
  *reply = NULL;
  {
    SCOPED_LOCK (&r->lock);
    stopping = r->stopping;
  }
  if (stopping) {
    errno = ESHUTDOWN;
    result = mcerror_set (&a.err, MCEXIT_USAGE, "the server is stopping");
  }
  else if (memchr (request, '\0', len) || memchr (request, '\n', len))
    result = usage (&a, "a request is one line of text");
  else {
    copy = strndup (request, len);
    if (copy == NULL)
      return -1;
    result = carry_out (r, local, copy, &a);
  }
  saved = errno;
  if (result == -1 && local && saved == ESHUTDOWN && !stopping)
    /* Somebody of another generation; the control export logs every refusal. */
    replica_log (r, REPLICA_LOG_ERROR, "control request refused: %s", a.err.text);
  if (result == 0)
    *reply = a.line ? a.line : json_line (a.json);
  else
    *reply = refusal_line (&a.err);
  if (*reply == NULL) {
    errno = ENOMEM;
    return -1;
  }
  errno = nbd_errno (saved);
  return result;
}

int
replica_control (struct replica *r, bool local, const char *request,
                 size_t len, char **reply)
{
  return control (r, local, 0, request, len, reply);
}

int
replica_control_since (struct replica *r, uint64_t generation,
                       const char *request, size_t len, char **reply)
{
  return control (r, false, generation, request, len, reply);
}

uint64_t
replica_get_generation (struct replica *r)
{
  SCOPED_LOCK (&r->lock);

  return r->generation;
}

void
replica_set_shutdown (struct replica *r, void (*fn) (void))
{
  SCOPED_LOCK (&r->lock);

  r->shutdown = fn;
}

void
replica_connections_add (struct replica *r, int n)
{
  SCOPED_LOCK (&r->lock);

  r->connections += n;
}
