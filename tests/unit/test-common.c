/* SPDX-License-Identifier: BSD-3-Clause */
/* common/: checksums, bytes, the host, errors. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/bytes.h"
#include "common/cleanup.h"
#include "common/crc.h"
#include "common/host.h"
#include "common/library.h"
#include "common/mcerror.h"
#include "common/uri.h"
#include "unit/unit.h"

#define S UINT64_C (1000000000)

/* Castagnoli, a bit at a time. */
static uint32_t
slow_crc (const uint8_t *p, size_t n, uint32_t seed)
{
  uint32_t crc = ~seed;

  while (n-- > 0) {
    crc ^= *p++;
    for (unsigned i = 0; i < 8; i++)
      crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
  }
  return ~crc;
}

/* What mcbuf was built with, and what it would have been built with otherwise. */
static uint32_t (*const crc_of[]) (const void *, size_t, uint32_t) = { crc32c, crc32c_tables };

START_TEST (test_crc)
{
  uint8_t buf[5000];
  uint32_t (*crc) (const void *, size_t, uint32_t) = crc_of[_i];

  unit_seed ();
  /* RFC 3720, B.4. */
  EXPECT (crc ("123456789", 9, 0) == 0xe3069283);
  memset (buf, 0, sizeof buf);
  EXPECT (crc (buf, 32, 0) == 0x8a9136aa);
  memset (buf, 0xff, 32);
  EXPECT (crc (buf, 32, 0) == 0x62a8ab43);
  for (unsigned i = 0; i < 32; i++)
    buf[i] = i;
  EXPECT (crc (buf, 32, 0) == 0x46dd794e);
  for (unsigned i = 0; i < 32; i++)
    buf[i] = 31 - i;
  EXPECT (crc (buf, 32, 0) == 0x113fdb5c);
  EXPECT (crc (buf, 0, 0) == 0);
  EXPECT (crc (NULL, 0, 77) == 77);

  for (size_t i = 0; i < sizeof buf; i++)
    buf[i] = unit_random (256);
  for (unsigned i = 0; i < 500; i++) {
    size_t from = unit_random (sizeof buf);
    size_t n = unit_random (sizeof buf - from + 1), half = unit_random (n + 1);
    uint32_t seed = unit_random (UINT64_C (1) << 32);
    uint32_t want = slow_crc (buf + from, n, seed);

    EXPECT (crc (buf + from, n, seed) == want);
    EXPECT (crc (buf + from + half, n - half,
                 crc (buf + from, half, seed)) == want);
  }
}
END_TEST

#if defined HAVE_ISAL && SIZE_MAX > UINT32_MAX
/* Longer than ISA-L's int counts. */
START_TEST (test_crc_long)
{
  size_t n = (size_t) 1 << 31;
  uint8_t *p = calloc (1, n);
  uint32_t crc = 0;

  if (p == NULL)
    return;
  for (unsigned i = 0; i < 32; i++)
    crc = crc32c (p, n / 32, crc);
  EXPECT (crc32c (p, n, 0) == crc);
  free (p);
}
END_TEST
#endif

START_TEST (test_bytes)
{
  const uint8_t b16[] = { 0x34, 0x12 }, b32[] = { 0x78, 0x56, 0x34, 0x12 };
  const uint8_t b64[] = { 0xef, 0xcd, 0xab, 0x90, 0x78, 0x56, 0x34, 0x12 };
  le16 v16 = put16 (0x1234);
  le32 v32 = put32 (0x12345678);
  le64 v64 = put64 (UINT64_C (0x1234567890abcdef));

  EXPECT (memcmp (&v16, b16, 2) == 0 && get16 (v16) == 0x1234);
  EXPECT (memcmp (&v32, b32, 4) == 0 && get32 (v32) == 0x12345678);
  EXPECT (memcmp (&v64, b64, 8) == 0);
  EXPECT (get64 (v64) == UINT64_C (0x1234567890abcdef));

  /* A 32 bit alignment must not cut a 64 bit number. */
  EXPECT (ROUND_DOWN (UINT64_C (0xfffffffff1), 4096u) ==
          UINT64_C (0xfffffff000));
  EXPECT (ROUND_UP (UINT64_C (0x100000001), 4096u) == UINT64_C (0x100001000));
  EXPECT (ROUND_UP (UINT64_C (4096), 4096u) == 4096);
  EXPECT (IS_ALIGNED (UINT64_C (8192), 4096) && !IS_ALIGNED (8193, 4096));
  EXPECT (DIV_UP (0, 8) == 0 && DIV_UP (8, 8) == 1 && DIV_UP (9, 8) == 2);
  EXPECT (MIN (3, 4) == 3 && MAX (3, 4) == 4);
}
END_TEST

START_TEST (test_host_ids)
{
  uint8_t a[HOST_ID_LEN], b[HOST_ID_LEN], zero[HOST_ID_LEN] = { 0 };
  char text[HOST_ID_STRLEN + 1];

  EXPECT (host_boot_id (a) == 0 && host_boot_id (b) == 0);
  EXPECT (memcmp (a, b, sizeof a) == 0);
  EXPECT (memcmp (a, zero, sizeof a) != 0);

  /* It is the kernel's, in its order. */
  FILE *f = fopen ("/proc/sys/kernel/random/boot_id", "r");
  char line[64], *p = line;
  EXPECT (f != NULL && fgets (line, sizeof line, f) != NULL);
  EXPECT (fclose (f) == 0);
  host_id_text (a, text);
  for (unsigned i = 0; i < HOST_ID_STRLEN; i++) {
    while (*p == '-')
      p++;
    EXPECT (text[i] == *p++);
  }
  EXPECT (text[HOST_ID_STRLEN] == '\0');

  EXPECT (host_random (a, sizeof a) == 0 && host_random (b, sizeof b) == 0);
  EXPECT (memcmp (a, b, sizeof a) != 0);
  for (unsigned i = 0; i < HOST_ID_LEN; i++)
    a[i] = 17 * i;
  host_id_text (a, text);
  ck_assert_str_eq (text, "00112233445566778899aabbccddeeff");
}
END_TEST

START_TEST (test_clocks)
{
  uint64_t wall = host_time_ns (), first = host_monotonic_ns ();
  time_t now = time (NULL);

  EXPECT (wall / S + 1 >= (uint64_t) now && wall / S <= (uint64_t) now + 1);
  for (unsigned i = 0; i < 1000; i++) {
    uint64_t next = host_monotonic_ns ();

    EXPECT (next >= first);
    first = next;
  }
}
END_TEST

static const char *
text_of (uint64_t ns)
{
  static char text[HOST_TIME_STRLEN];

  host_time_text (ns, text);
  return text;
}

START_TEST (test_time_text)
{
  ck_assert_str_eq (text_of (0), "1970-01-01T00:00:00.000Z");
  ck_assert_str_eq (text_of (1769903999 * S + 123999999),
                    "2026-01-31T23:59:59.123Z");
  ck_assert_str_eq (text_of (951782400 * S), "2000-02-29T00:00:00.000Z");
  ck_assert_str_eq (text_of (4102444799 * S + 999999999),
                    "2099-12-31T23:59:59.999Z");
  EXPECT (strlen (text_of (UINT64_MAX)) < HOST_TIME_STRLEN);
}
END_TEST

static void
set_zone (const char *zone)
{
  EXPECT (setenv ("TZ", zone, 1) == 0);
  tzset ();
}

START_TEST (test_time_parse)
{
  const uint64_t t = 1769903999;        /* 2026-01-31T23:59:59Z */
  const struct { const char *text; uint64_t ns; } good[] = {
    { "2026-01-31T23:59:59Z", t * S + S - 1 },
    { "2026-01-31 23:59:59z", t * S + S - 1 },
    { "2026-01-31T23:59:59.5Z", t * S + 600000000 - 1 },
    { "2026-01-31T23:59:59.123Z", t * S + 124000000 - 1 },
    { "2026-01-31T23:59:59.123456789Z", t * S + 123456789 },
    { "2026-01-31T23:59:59.1234567899Z", t * S + 123456789 },
    { "2026-01-31T23:59Z", t * S + S - 1 },
    { "2026-02-01T01:29:59+01:30", t * S + S - 1 },
    { "2026-01-31 18:59:59.0-05:00", t * S + 100000000 - 1 },
    { "2026-02-01T00:59+01:00", t * S + S - 1 },
    { "1970-01-01T00:00:00Z", S - 1 },
    /* none: local, two hours east */
    { "2026-02-01T01:59:59", t * S + S - 1 },
    { "2026-02-01 01:59", t * S + S - 1 },
  };
  static const char *const wrong[] = {
    "", "x", "12", "12:", "2026", "2026-01-31", "2026-01-31T", "25:00",
    "12:60", "2026-13-01T00:00Z", "2026-01-31T23:59:59ZZ",
    "2026-01-31T23:59:59 Z", "2026-01-31T23:59:59+0100",
    "2026-01-31T23:59:59+24:00", "2026-01-31T23:59:59+01:60",
    "2026-01-31T23:59:59+01:00x", "2026-01-31T23:59:59.5.5",
    "1969-12-31T23:59:59Z", "12:00 ", "12:00x", "-1",
  };
  uint64_t ns;

  set_zone ("XXX-2");
  for (unsigned i = 0; i < sizeof good / sizeof good[0]; i++) {
    ck_assert_msg (host_time_parse (good[i].text, &ns) == 0, "%s",
                   good[i].text);
    ck_assert_msg (ns == good[i].ns, "%s: %llu, not %llu", good[i].text,
                   (unsigned long long) ns, (unsigned long long) good[i].ns);
  }
  for (unsigned i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
    errno = 0;
    ck_assert_msg (host_time_parse (wrong[i], &ns) == -1 && errno == EINVAL,
                   "%s is taken", wrong[i]);
  }
}
END_TEST

/* What is printed can be typed, and takes in the moment it was printed for. */
START_TEST (test_time_both_ways)
{
  unit_seed ();
  set_zone ("XXX+7");
  for (unsigned i = 0; i < 2000; i++) {
    uint64_t ns = unit_random (4000000000 * S), back;

    EXPECT (host_time_parse (text_of (ns), &back) == 0);
    EXPECT (back / 1000000 == ns / 1000000 && back % 1000000 == 999999);
  }
}
END_TEST

/* The time of day is today's; daylight saving is the zone's affair. */
START_TEST (test_time_today)
{
  static const char *const zones[] = { "UTC", "XXX-5:30", "AAA+3BBB,M1.1.0,M12.5.0" };

  for (unsigned i = 0; i < 3; i++) {
    time_t before, after, t;
    struct tm tm;
    uint64_t ns;

    set_zone (zones[i]);
    do {                        /* again if midnight came in between */
      before = time (NULL);
      EXPECT (host_time_parse ("13:45", &ns) == 0);
      after = time (NULL);
      EXPECT (localtime_r (&before, &tm) != NULL);
      t = ns / S;
    } while (before / 3600 != after / 3600);

    struct tm got;
    EXPECT (localtime_r (&t, &got) != NULL);
    EXPECT (got.tm_yday == tm.tm_yday && got.tm_year == tm.tm_year);
    EXPECT (got.tm_hour == 13 && got.tm_min == 45 && got.tm_sec == 59);
    EXPECT (ns % S == S - 1);
    uint64_t ns2;
    EXPECT (host_time_parse ("13:45:59.25", &ns2) == 0);
    EXPECT (ns2 / S == ns / S && ns2 % S == 260000000 - 1);
  }
  /* Summer time, where local time has one. */
  uint64_t summer, winter;
  set_zone ("CET-1CEST,M3.5.0,M10.5.0/3");
  EXPECT (host_time_parse ("2026-07-01T12:00:00", &summer) == 0);
  EXPECT (host_time_parse ("2026-07-01T10:00:00Z", &winter) == 0);
  EXPECT (summer == winter);
  EXPECT (host_time_parse ("2026-01-01T12:00:00", &summer) == 0);
  EXPECT (host_time_parse ("2026-01-01T11:00:00Z", &winter) == 0);
  EXPECT (summer == winter);
}
END_TEST

START_TEST (test_mcerror)
{
  struct mcerror err = { .code = MCEXIT_DONE };
  char longer[3000];

  errno = ENOSPC;
  EXPECT (mcerror_set (&err, MCEXIT_REFUSED, "%s: %m", "file") == -1);
  EXPECT (errno == ENOSPC && err.code == MCEXIT_REFUSED);
  ck_assert_str_eq (err.text, "file: No space left on device");
  EXPECT (mcerror_set (NULL, MCEXIT_USAGE, "%d", 1) == -1);
  EXPECT (errno == ENOSPC);
  EXPECT (mcerror_set (&err, MCEXIT_DAMAGE, "a\nb\tc%sd", "\x7f\x1b") == -1);
  ck_assert_str_eq (err.text, "a?b?c??d");
  EXPECT (mcerror_set (&err, MCEXIT_DAMAGE, "gr\xc3\xbc\xc3\x9f") == -1);
  ck_assert_str_eq (err.text, "gr\xc3\xbc\xc3\x9f");
  memset (longer, 'x', sizeof longer);
  longer[sizeof longer - 1] = '\0';
  EXPECT (mcerror_set (&err, MCEXIT_PARTIAL, "%s", longer) == -1);
  EXPECT (strlen (err.text) == sizeof err.text - 1);
}
END_TEST

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int
leave (bool early)
{
  SCOPED_LOCK (&lock);
  CLEANUP_FREE char *p = malloc (10);

  EXPECT (pthread_mutex_trylock (&lock) == EBUSY);
  errno = EXDEV;
  if (early)
    return p ? -1 : 0;
  return 1;
}

START_TEST (test_uri)
{
  static const char *const uris[] = { "nbd://h", "nbds://h/x", "nbd+unix:///?socket=/s",
                                      "nbds+unix:///?socket=/s", "nbd+vsock://2/" };
  static const char *const paths[] = { "", "nbd", "nbd:x", "nbd:/x", "/nbd://x", "nbdx://h",
                                       "nbd+://h", "nbd+Unix://h", "http://h", "./nbd://h" };
  static const char *const relative[][2] = {
    { "nbd+unix:///?socket=s", "socket" },
    { "nbds://h/?tls-psk-file=keys&x=/", "tls-psk-file" },
    { "nbds+unix:///?socket=/s&tls-certificates=pki", "tls-certificates" },
    { "nbds+unix:///?socket=/s;tls-certificates=pki", "tls-certificates" },
    { "nbd+unix:///?socket=", "socket" },
  };
  static const char *const absolute[] = { "nbd://h/socket=s", "nbd+unix:///x?socket=/s",
                                          "nbd+unix:///?socket=%2Fs", "nbd+unix:///?socket=%2fs",
                                          "nbd://h/?xsocket=s", "nbds://h/?tls-psk-file=/k&socket=/s" };

  for (size_t i = 0; i < sizeof uris / sizeof uris[0]; i++)
    ck_assert_msg (uri_is_nbd (uris[i]), "%s", uris[i]);
  for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++)
    ck_assert_msg (!uri_is_nbd (paths[i]), "%s", paths[i]);
  for (size_t i = 0; i < sizeof relative / sizeof relative[0]; i++)
    ck_assert_pstr_eq (uri_relative_path (relative[i][0]), relative[i][1]);
  for (size_t i = 0; i < sizeof absolute / sizeof absolute[0]; i++)
    ck_assert_ptr_null (uri_relative_path (absolute[i]));
}
END_TEST

START_TEST (test_library)
{
  size_t (*length) (const char *) = NULL, (*none) (const char *) = NULL;
  const struct library_function fn[] = { { "strlen", &length }, { "no_such_function", &none } };
  const char *why = NULL;

  ck_assert_int_eq (library_load ("libc.so.6", fn, 1, &why), 0);
  ck_assert_uint_eq (length ("four"), 4);
  ck_assert_int_eq (library_load ("libc.so.6", fn, 2, &why), -1);
  ck_assert_ptr_nonnull (strstr (why, "no_such_function"));
  ck_assert_int_eq (library_load ("libno-such-library.so.0", fn, 1, &why), -1);
  ck_assert_ptr_nonnull (strstr (why, "libno-such-library.so.0"));
}
END_TEST

START_TEST (test_cleanup)
{
  EXPECT (leave (true) == -1 && errno == EXDEV);
  EXPECT (leave (false) == 1 && errno == EXDEV);
  EXPECT (pthread_mutex_trylock (&lock) == 0);
  EXPECT (pthread_mutex_unlock (&lock) == 0);
  {
    CLEANUP_CLOSE int fd = -1;
    (void) fd;
  }
  EXPECT (errno == EXDEV);
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("common");
  TCase *tc = tcase_create ("common"), *crc = tcase_create ("crc");

  tcase_set_timeout (tc, 120);
  /* A case of its own, which is run on an emulated CPU as well (nbd/test-mcbuf-old-cpu.sh). */
  tcase_add_loop_test (crc, test_crc, 0, 2);
  suite_add_tcase (s, crc);
#if defined HAVE_ISAL && SIZE_MAX > UINT32_MAX
  tcase_add_test (tc, test_crc_long);
#endif
  tcase_add_test (tc, test_bytes);
  tcase_add_test (tc, test_host_ids);
  tcase_add_test (tc, test_clocks);
  tcase_add_test (tc, test_time_text);
  tcase_add_test (tc, test_time_parse);
  tcase_add_test (tc, test_time_both_ways);
  tcase_add_test (tc, test_time_today);
  tcase_add_test (tc, test_mcerror);
  tcase_add_test (tc, test_uri);
  tcase_add_test (tc, test_library);
  tcase_add_test (tc, test_cleanup);
  suite_add_tcase (s, tc);
  return unit_run (s);
}
