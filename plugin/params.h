/* SPDX-License-Identifier: BSD-3-Clause */
/* The plugin's parameters, from nbdkit's command line to struct replica_params. */
#ifndef MCBUF_PLUGIN_PARAMS_H
#define MCBUF_PLUGIN_PARAMS_H

#include "common/secret.h"
#include "replica/replica.h"

#define params_help \
  "[disk=][NAME:]PATH     (required) Backing image of a disk, a path or an NBD\n" \
  "                       URI; may be repeated with different NAMEs.\n" \
  "journal=DIR            Journal directory (default: PATH.mcbuf).\n" \
  "journal-size=SIZE      Size of a new journal (default: 1G).\n" \
  "buffer=SIZE            Staging memory (default: 256M).\n" \
  "add-disk=NAME          That disk may join a replica that is there already.\n" \
  "remove-disk=NAME       That disk, which is not given any more, may leave it.\n" \
  "size=SIZE              Create missing backing images with this size.\n" \
  "history=N|TIME         Keep so many older checkpoints, or those of TIME (such\n" \
  "                       as 90s, 30m, 2h), recoverable (default: none).\n" \
  "baseline=trusted       A new journal's images already equal the primary's.\n" \
  "control-secret=+FILE   Ask for a secret, the first line of FILE, on the control\n" \
  "                       export."

/* nbdkit's .config and .config_complete. */
extern int params_config (const char *key, const char *value);
extern int params_complete (void);

/* What they add up to; its strings are good until params_free. */
extern struct replica_params params_replica (void);
/* What control-secret= gave; NULL: nothing. */
extern const struct secret *params_secret (void);
extern void params_free (void);

#endif /* MCBUF_PLUGIN_PARAMS_H */
