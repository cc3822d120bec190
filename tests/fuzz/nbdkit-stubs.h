/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef MCBUF_TESTS_FUZZ_NBDKIT_STUBS_H
#define MCBUF_TESTS_FUZZ_NBDKIT_STUBS_H

extern const char *stub_export_name;    /* what the next open asks for */
extern unsigned stub_errors;    /* calls of nbdkit_error */
extern int stub_errno;          /* the last nbdkit_set_error */

#endif /* MCBUF_TESTS_FUZZ_NBDKIT_STUBS_H */
