/* SPDX-License-Identifier: BSD-3-Clause */
/* nbdkit-mcbuf-plugin: a replica target for checkpointed virtual machines.
 *
 * The plugin is the secondary's end of a mirror.  What the primary's QEMU writes
 * goes into the open epoch of a speculation buffer; a commit makes all sealed epochs
 * durable at once; write-out copies them to the backing images behind the
 * client's back; a promote throws away what was not committed.  All of that lives in
 * replica/.  Here are nbdkit's callbacks, thin: parameters to replica_open,
 * requests to replica_*, errno and one line of text back.
 *
 * nbdkit forks after .get_ready.  So .get_ready does everything that can fail because of
 * the user (files, locks, the control socket's name), and .after_fork only starts threads.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "common/crc.h"
#include "plugin/control.h"
#include "plugin/params.h"
#include "replica/replica.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#define CONTROL_EXPORT "mcbuf-control"
#define LISTED_MAX 4096         /* checkpoints of all disks among the exports, newest first */

/* A client that stays connected keeps nbdkit from ending.  The verb "shutdown"
 * gives clients this long to leave, then it stops the replica and the process.
 */
#define SHUTDOWN_GRACE_S 1

static struct replica *replica;
static uid_t ready_euid;

/* nbdkit forks into the background, and for --run: then the child serves. */
static bool is_parent;
static bool serving;            /* .after_fork was reached and all is well */

/* Who ends the replica: nbdkit's main thread, or the one that "shutdown" starts.  Not with
 * the lock: the end waits for control clients, who may be on their way to mcbuf_shutdown.
 */
static pthread_mutex_t end_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t end_cond = PTHREAD_COND_INITIALIZER;
static pthread_t end_thread;
static bool end_started;
static bool ending;             /* by the one who has set this */

static void
mcbuf_log (void *opaque, enum replica_log_level level, const char *line)
{
  (void) opaque;
  if (level == REPLICA_LOG_ERROR)
    nbdkit_error ("%s", line);
  else
    nbdkit_debug ("%s", line);
}

static void
mcbuf_unload (void)
{
  bool mine, wait;

  /* Not reached on SIGKILL: then the next start finds out for itself. */
  pthread_mutex_lock (&end_lock);
  mine = !ending;
  ending = true;
  pthread_cond_signal (&end_cond);
  pthread_mutex_unlock (&end_lock);
  if (mine) {
    replica_close (replica);
    replica = NULL;
  }
  /* Nobody starts it any more: there are no control clients, or it is at its end. */
  pthread_mutex_lock (&end_lock);
  wait = end_started;
  pthread_mutex_unlock (&end_lock);
  if (wait)
    (void) pthread_join (end_thread, NULL);
  params_free ();
}

/* nbdkit calls exit without .unload when it cannot go on after .get_ready, because its
 * address is in use for example: leave nothing in shared memory then either.
 */
static void __attribute__ ((destructor))
mcbuf_exit (void)
{
  if (replica && !is_parent && !serving) {
    replica_close (replica);
    replica = NULL;
  }
}

static void
note_parent (void)
{
  is_parent = true;
}

static void
mcbuf_dump_plugin (void)
{
  printf ("mcbuf_version=%s\n", PACKAGE_VERSION);
  printf ("mcbuf_max_disks=%u\n", JOURNAL_MAX_DISKS);
  printf ("mcbuf_default_journal_size=%" PRIu64 "\n",
          REPLICA_DEFAULT_JOURNAL_SIZE);
  printf ("mcbuf_default_buffer=%" PRIu64 "\n", REPLICA_DEFAULT_BUFFER);
  printf ("mcbuf_control_export=%s\n", CONTROL_EXPORT);
  printf ("mcbuf_crc32c=%s\n", crc32c_by);
}

static void *
end_main (void *arg)
{
  struct timespec until;
  bool mine;

  (void) arg;
  if (clock_gettime (CLOCK_REALTIME, &until) == -1)
    return NULL;
  until.tv_sec += SHUTDOWN_GRACE_S;
  pthread_mutex_lock (&end_lock);
  while (!ending &&
         pthread_cond_timedwait (&end_cond, &end_lock, &until) == 0)
    ;
  mine = !ending;
  ending = true;
  pthread_mutex_unlock (&end_lock);
  if (mine) {
    nbdkit_debug ("clients stay connected: ending without them");
    replica_stop (replica);
    _exit (EXIT_SUCCESS);
  }
  return NULL;
}

static void
mcbuf_shutdown (void)
{
  pthread_mutex_lock (&end_lock);
  nbdkit_shutdown ();
  if (!end_started)
    end_started = pthread_create (&end_thread, NULL, end_main, NULL) == 0;
  pthread_mutex_unlock (&end_lock);
}

/* Each connection takes a descriptor, and a shell's usual soft limit is 1024: with that many, whoever wants to commit would
 * be kept out.  Nothing here uses select, so the hard limit will do.
 */
static void
raise_open_files (void)
{
  struct rlimit limit;
  rlim_t was;

  if (getrlimit (RLIMIT_NOFILE, &limit) == -1 || limit.rlim_cur == limit.rlim_max)
    return;
  was = limit.rlim_cur;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit (RLIMIT_NOFILE, &limit) == -1)
    nbdkit_debug ("mcbuf: open files: the limit stays at %ju: %s", (uintmax_t) was, strerror (errno));
  else
    nbdkit_debug ("mcbuf: open files: limit raised from %ju to %ju", (uintmax_t) was,
                  (uintmax_t) limit.rlim_cur);
}

static int
mcbuf_get_ready (void)
{
  struct mcerror err;
  struct replica_params p = params_replica ();

  p.log = mcbuf_log;
  raise_open_files ();
  if (pthread_atfork (NULL, note_parent, NULL) != 0) {
    nbdkit_error ("cannot prepare for a fork: out of memory");
    return -1;
  }
  if (replica_open (&p, &replica, &err) == -1) {
    nbdkit_error ("%s", err.text);
    return -1;
  }
  replica_set_shutdown (replica, mcbuf_shutdown);
  ready_euid = geteuid ();
  return 0;
}

static int
mcbuf_after_fork (void)
{
  /* What mcbuf_get_ready made belongs to the user of then. */
  if (geteuid () != ready_euid) {
    nbdkit_error ("nbdkit's options -u and -g are not supported: start nbdkit as that user instead");
    return -1;
  }
  if (replica_run (replica) == -1) {
    nbdkit_error ("cannot start the replica's threads: %m");
    return -1;
  }
  serving = true;
  return 0;
}

/* --- connections ----------------------------------------------------------- */

struct handle {
  struct control_client *control;       /* the control export; NULL: a disk */
  struct replica_export export;
};

/* Checkpoints of one disk among the exports. */
struct listing {
  struct nbdkit_exports *exports;
  const char *name;
};

static int
add_export (struct nbdkit_exports *exports, const char *name,
            const char *suffix, const char *description)
{
  char *full;
  int r;

  if (asprintf (&full, "%s@%s", name, suffix) == -1) {
    nbdkit_error ("asprintf: %m");
    return -1;
  }
  r = nbdkit_add_export (exports, full, description);
  free (full);
  return r;
}

static int
list_checkpoint (void *opaque, uint64_t number)
{
  const struct listing *l = opaque;
  char text[24];

  snprintf (text, sizeof text, "%" PRIu64, number);
  return add_export (l->exports, l->name, text, "a checkpoint, read-only");
}

/* What a disk has beside its inlet and its checkpoints. */
static const struct {
  enum replica_view view;
  const char *suffix, *description;
} others[] = {
  { REPLICA_PROMOTED, "promoted", "the disk, after a promote" },
  { REPLICA_DIVERGENCE, "divergence", "the disk, with extents where the old primary's differs" },
  { REPLICA_SCRATCH, "scratch", "the newest checkpoint, to write to and throw away" },
  { REPLICA_CHECKPOINT, "latest", "the newest checkpoint, read-only" },
};

/* Only what can be opened: clients that list exports open each. */
static int
mcbuf_list_exports (int readonly, int is_tls, struct nbdkit_exports *exports)
{
  const bool promoted = replica_is_promoted (replica);

  (void) readonly;
  (void) is_tls;
  for (unsigned i = 0; i < replica_ndisks (replica); i++) {
    const char *name = replica_disk_name (replica, i);
    struct listing l = { .exports = exports, .name = name };

    if (nbdkit_add_export (exports, name, "inlet") == -1)
      return -1;
    for (size_t k = 0; k < sizeof others / sizeof others[0]; k++)
      if (replica_can_open (replica, i, others[k].view) &&
          add_export (exports, name, others[k].suffix,
                      promoted && others[k].view == REPLICA_SCRATCH ?
                      "another name of the disk, which was a scratch" : others[k].description) == -1)
        return -1;
    if (replica_can_open (replica, i, REPLICA_CHECKPOINT) &&
        replica_each_checkpoint (replica, i, LISTED_MAX / replica_ndisks (replica),
                                 list_checkpoint, &l) == -1)
      return -1;
  }
  return nbdkit_add_export (exports, CONTROL_EXPORT, "control verbs");
}

static const char *
mcbuf_default_export (int readonly, int is_tls)
{
  (void) readonly;
  (void) is_tls;
  return replica_disk_name (replica, 0);
}

static void
report_open (const char *name)
{
  switch (errno) {
  case ESHUTDOWN:
    if (replica_is_promoted (replica))
      nbdkit_error ("export \"%s\": this copy was promoted and is the disk now: use NAME@promoted", name);
    else
      nbdkit_error ("export \"%s\" exists only after a promote", name);
    break;
  case ENODATA:                 /* the replica has said why */
    nbdkit_error ("export \"%s\": where the old primary's disk differs is not known", name);
    break;
  case EMFILE:
    nbdkit_error ("export \"%s\": too many checkpoints are looked at already: close some", name);
    break;
  case ENOENT:
    nbdkit_error ("export \"%s\" is none of this replica's, or a checkpoint that it does not hold (any more)",
                  name);
    break;
  default:
    nbdkit_error ("export \"%s\": %m", name);
  }
}

static void *
mcbuf_open (int readonly)
{
  const char *name = nbdkit_export_name ();
  struct handle *h = calloc (1, sizeof *h);

  (void) readonly;
  if (name == NULL || h == NULL) {
    nbdkit_error ("cannot open an export: %m");
    goto error;
  }
  if (strcmp (name, CONTROL_EXPORT) == 0) {
    h->control = control_client_new (replica, params_secret ());
    if (h->control == NULL)
      goto error;
  }
  else if (replica_open_export (replica, name, &h->export) == -1) {
    report_open (name);
    goto error;
  }
  replica_connections_add (replica, 1);
  return h;

 error:
  free (h);
  return NULL;
}

static void
mcbuf_close (void *handle)
{
  struct handle *h = handle;

  replica_connections_add (replica, -1);
  replica_close_export (replica, &h->export);
  control_client_free (h->control);
  free (h);
}

static int64_t
mcbuf_get_size (void *handle)
{
  const struct handle *h = handle;

  return h->control ? REPLICA_CONTROL_SIZE :
    (int64_t) replica_disk_size (replica, h->export.disk);
}

static const char *
mcbuf_export_description (void *handle)
{
  const struct handle *h = handle;

  return h->control ? "mcbuf control verbs" :
    h->export.view == REPLICA_PROMOTED ? "mcbuf disk, promoted" :
    h->export.view == REPLICA_CHECKPOINT ? "mcbuf checkpoint, read-only" :
    h->export.view == REPLICA_DIVERGENCE ? 
      "mcbuf divergence from the old primary; not all of it if that was killed" :
    h->export.view == REPLICA_SCRATCH ? "mcbuf scratch, over the newest checkpoint" :
    "mcbuf inlet";
}

static int
mcbuf_block_size (void *handle, uint32_t *minimum, uint32_t *preferred,
                  uint32_t *maximum)
{
  (void) handle;
  *minimum = 1;
  *preferred = 4096;
  *maximum = 32 * 1024 * 1024;
  return 0;
}

static int
mcbuf_can_write (void *handle)
{
  const struct handle *h = handle;

  return h->control || (h->export.view != REPLICA_CHECKPOINT &&
                        h->export.view != REPLICA_DIVERGENCE);
}

/* Only disks can do what is asked of disks. */
static int
is_disk (void *handle)
{
  return !((const struct handle *) handle)->control;
}

static int
mcbuf_can_fua (void *handle)
{
  return is_disk (handle) ? NBDKIT_FUA_NATIVE : NBDKIT_FUA_NONE;
}

static int
mcbuf_can_cache (void *handle)
{
  return is_disk (handle) ? NBDKIT_CACHE_NATIVE : NBDKIT_CACHE_NONE;
}

static int
mcbuf_can_multi_conn (void *handle)
{
  /* The control export keeps a reply for each connection; and a client that takes many connections to
   * NAME@latest or NAME@scratch for one disk would mix checkpoints.
   */
  const struct handle *h = handle;

  return is_disk (handle) && !h->export.latest &&
    h->export.view != REPLICA_SCRATCH;
}

/* --- requests on a disk ---------------------------------------------------- */

static int
report (const struct handle *h, int r)
{
  if (r == -1) {
    int errnum = errno;
    char text[512];

    replica_explain (replica, &h->export, errnum, text, sizeof text);
    nbdkit_error ("%s", text);
    nbdkit_set_error (errnum);
  }
  return r;
}

static int
mcbuf_pread (void *handle, void *buf, uint32_t count, uint64_t offset,
             uint32_t flags)
{
  struct handle *h = handle;

  (void) flags;
  if (h->control)
    return control_client_read (h->control, buf, count, offset);
  return report (h, replica_pread (replica, &h->export, buf, count, offset));
}

static unsigned
replica_flags (uint32_t flags)
{
  return (flags & NBDKIT_FLAG_FUA ? REPLICA_FUA : 0) |
    (flags & NBDKIT_FLAG_MAY_TRIM ? REPLICA_MAY_TRIM : 0) |
    (flags & NBDKIT_FLAG_FAST_ZERO ? REPLICA_FAST_ZERO : 0);
}

static int
mcbuf_pwrite (void *handle, const void *buf, uint32_t count, uint64_t offset,
              uint32_t flags)
{
  struct handle *h = handle;

  if (h->control)
    return control_client_write (h->control, buf, count, offset);
  return report (h, replica_pwrite (replica, &h->export, buf, count, offset,
                                    replica_flags (flags)));
}

static int
mcbuf_zero (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  struct handle *h = handle;
  int r = replica_zero (replica, &h->export, count, offset,
                        replica_flags (flags));

  /* "Not fast" is an answer, and no error. */
  if (r == -1 && flags & NBDKIT_FLAG_FAST_ZERO && errno == ENOTSUP) {
    nbdkit_set_error (ENOTSUP);
    return -1;
  }
  return report (h, r);
}

static int
mcbuf_trim (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  struct handle *h = handle;

  /* A trimmed range reads as zeroes, here as in the backing image. */
  return report (h, replica_zero (replica, &h->export, count, offset,
                                  replica_flags (flags) | REPLICA_MAY_TRIM));
}

static int
mcbuf_flush (void *handle, uint32_t flags)
{
  struct handle *h = handle;

  (void) flags;
  return report (h, replica_flush (replica, &h->export));
}

static int
mcbuf_cache (void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
  struct handle *h = handle;

  (void) flags;
  return report (h, replica_cache (replica, &h->export, count, offset));
}

struct extents {
  struct nbdkit_extents *list;
  bool failed;                  /* nbdkit has said why */
};

static int
add_extent (void *opaque, uint64_t offset, uint64_t length, bool hole,
            bool zero)
{
  struct extents *e = opaque;

  if (nbdkit_add_extent (e->list, offset, length,
                         (hole ? NBDKIT_EXTENT_HOLE : 0) |
                         (zero ? NBDKIT_EXTENT_ZERO : 0)) == -1) {
    e->failed = true;
    return -1;
  }
  return 0;
}

static int
mcbuf_extents (void *handle, uint32_t count, uint64_t offset, uint32_t flags,
               struct nbdkit_extents *extents)
{
  struct handle *h = handle;
  struct extents e = { .list = extents };
  int r;

  (void) flags;
  r = replica_extents (replica, &h->export, count, offset, add_extent, &e);
  return e.failed ? r : report (h, r);
}

static struct nbdkit_plugin plugin = {
  .name = "mcbuf",
  .longname = "nbdkit replica target for checkpointed virtual machines",
  .version = PACKAGE_VERSION,
  .description = "Buffers a drive-mirror so that the disk is always recoverable to the last checkpoint",
  .unload = mcbuf_unload,
  .config = params_config,
  .config_complete = params_complete,
  .config_help = params_help,
  .magic_config_key = "disk",
  .dump_plugin = mcbuf_dump_plugin,
  .get_ready = mcbuf_get_ready,
  .after_fork = mcbuf_after_fork,
  .list_exports = mcbuf_list_exports,
  .default_export = mcbuf_default_export,
  .open = mcbuf_open,
  .close = mcbuf_close,
  .get_size = mcbuf_get_size,
  .export_description = mcbuf_export_description,
  .block_size = mcbuf_block_size,
  .can_write = mcbuf_can_write,
  .can_trim = is_disk,
  .can_zero = is_disk,
  .can_fast_zero = is_disk,
  .can_extents = is_disk,
  .can_flush = is_disk,
  .can_fua = mcbuf_can_fua,
  .can_cache = mcbuf_can_cache,
  .can_multi_conn = mcbuf_can_multi_conn,
  .pread = mcbuf_pread,
  .pwrite = mcbuf_pwrite,
  .zero = mcbuf_zero,
  .trim = mcbuf_trim,
  .flush = mcbuf_flush,
  .cache = mcbuf_cache,
  .extents = mcbuf_extents,
  .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN (plugin)
