/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <sys/resource.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/host.h"

#define NS_PER_S UINT64_C (1000000000)
#define BUSY_NS (2 * NS_PER_S)
#define BUSY_POLL_NS (10 * 1000 * 1000)

static int
hex_digit (char c)
{
  if (c >= '0' && c <= '9')
    return c - '0';
  if (c >= 'a' && c <= 'f')
    return c - 'a' + 10;
  return -1;
}

int
host_boot_id (uint8_t id[HOST_ID_LEN])
{
  CLEANUP_CLOSE int fd = -1;
  char text[64];
  unsigned digits = 0;

  fd = open ("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
  if (fd == -1)
    return -1;
  ssize_t n = read (fd, text, sizeof text);
  if (n == -1)
    return -1;

  memset (id, 0, HOST_ID_LEN);
  for (ssize_t i = 0; i < n && digits < HOST_ID_STRLEN; i++) {
    int d = hex_digit (text[i]);

    if (d >= 0) {
      id[digits / 2] |= d << (digits % 2 ? 0 : 4);
      digits++;
    }
  }
  if (digits != HOST_ID_STRLEN) {
    errno = EIO;
    return -1;
  }
  return 0;
}

int
host_random (void *buf, unsigned len)
{
  uint8_t *p = buf;

  while (len > 0) {
    ssize_t n = getrandom (p, len, 0);

    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1)
      return -1;
    p += n;
    len -= n;
  }
  return 0;
}

void
host_id_text (const uint8_t id[HOST_ID_LEN], char text[HOST_ID_STRLEN + 1])
{
  for (unsigned i = 0; i < HOST_ID_LEN; i++)
    snprintf (text + 2 * i, 3, "%02x", id[i]);
}

static uint64_t
clock_ns (clockid_t clock)
{
  struct timespec ts = { 0, 0 };

  /* Neither clock can fail on Linux with a valid pointer. */
  if (clock_gettime (clock, &ts) == -1)
    return 0;
  return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

uint64_t
host_time_ns (void)
{
  return clock_ns (CLOCK_REALTIME);
}

uint64_t
host_monotonic_ns (void)
{
  return clock_ns (CLOCK_MONOTONIC);
}

bool
host_wait_busy (uint64_t *since)
{
  const struct timespec pause = { .tv_nsec = BUSY_POLL_NS };
  uint64_t now = host_monotonic_ns ();

  if (*since == 0)
    *since = now;
  if (now - *since >= BUSY_NS)
    return false;
  (void) nanosleep (&pause, NULL);      /* cut short, it is tried sooner */
  return true;
}

void
host_time_text (uint64_t ns, char text[HOST_TIME_STRLEN])
{
  time_t t = ns / NS_PER_S;
  struct tm tm = { .tm_mday = 1 };
  size_t n;

  if (gmtime_r (&t, &tm) == NULL)
    t = 0;
  n = strftime (text, HOST_TIME_STRLEN, "%Y-%m-%dT%H:%M:%S", &tm);
  snprintf (text + n, HOST_TIME_STRLEN - n, ".%03uZ",
            (unsigned) (ns / 1000000 % 1000));
}

/* After the seconds: an optional fraction.  Returns the rest of the text. */
static const char *
parse_fraction (const char *p, uint64_t *first, uint64_t *span)
{
  *first = 0;
  *span = NS_PER_S;
  if (*p != '.')
    return p;
  for (p++; *p >= '0' && *p <= '9'; p++) {
    if (*span > 1) {
      *span /= 10;
      *first += (*p - '0') * *span;
    }
  }
  return p;
}

/* After the time: "Z", "+HH:MM", "-HH:MM" or nothing (local).  -1 for junk. */
static int
parse_zone (const char *p, bool *local, long *offset)
{
  unsigned h, m;
  int used = 0;
  char sign = *p;

  *local = *p == '\0';
  *offset = 0;
  if (*local || ((*p == 'Z' || *p == 'z') && p[1] == '\0'))
    return 0;
  if ((sign == '+' || sign == '-') &&
      sscanf (p + 1, "%2u:%2u%n", &h, &m, &used) == 2 &&
      p[1 + used] == '\0' && h < 24 && m < 60) {
    *offset = (h * 3600L + m * 60L) * (sign == '-' ? -1 : 1);
    return 0;
  }
  return -1;
}

int
host_time_parse (const char *text, uint64_t *ns)
{
  struct tm tm = { .tm_isdst = -1 };
  uint64_t first = 0, span;
  const char *p;
  bool local;
  long offset;
  time_t t;

  if ((p = strptime (text, "%Y-%m-%dT%H:%M:%S", &tm)) != NULL ||
      (p = strptime (text, "%Y-%m-%d %H:%M:%S", &tm)) != NULL)
    p = parse_fraction (p, &first, &span);
  else if ((p = strptime (text, "%Y-%m-%dT%H:%M", &tm)) != NULL ||
           (p = strptime (text, "%Y-%m-%d %H:%M", &tm)) != NULL)
    span = 60 * NS_PER_S;
  else {
    time_t now = time (NULL);

    if (localtime_r (&now, &tm) == NULL)
      goto invalid;
    tm.tm_isdst = -1;
    tm.tm_sec = 0;
    if ((p = strptime (text, "%H:%M:%S", &tm)) != NULL)
      p = parse_fraction (p, &first, &span);
    else if ((p = strptime (text, "%H:%M", &tm)) != NULL) {
      tm.tm_sec = 0;
      span = 60 * NS_PER_S;
    }
    else
      goto invalid;
  }
  if (parse_zone (p, &local, &offset) == -1)
    goto invalid;
  tm.tm_isdst = -1;
  t = local ? mktime (&tm) : timegm (&tm) - offset;
  if (t < 0)
    goto invalid;
  *ns = t * NS_PER_S + first + span - 1;
  return 0;

 invalid:
  errno = EINVAL;
  return -1;
}

void
host_thread_has_time (void)
{
  (void) setpriority (PRIO_PROCESS, gettid (), 10);
}
