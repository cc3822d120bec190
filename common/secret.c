/* SPDX-License-Identifier: BSD-3-Clause */
#include "config.h"

#include <errno.h>
#include <string.h>

#include "common/secret.h"

int
secret_set (struct secret *s, const char *text)
{
  size_t len = strlen (text);
  bool bad = len == 0 || len >= SECRET_MAX;

  for (const char *p = text; *p; p++)
    bad |= (unsigned char) *p < 0x20 || *p == 0x7f;
  if (bad) {
    errno = EINVAL;
    return -1;
  }
  secret_wipe (s);
  memcpy (s->bytes, text, len);
  return 0;
}

bool
secret_is (const struct secret *s, const char *text, size_t len)
{
  struct secret other = { { 0 } };
  unsigned char differ = len >= SECRET_MAX || memchr (text, '\0', len);

  /* Only what came from outside decides how much is copied. */
  memcpy (other.bytes, text, len < SECRET_MAX ? len : SECRET_MAX);
  for (size_t i = 0; i < SECRET_MAX; i++) {
    differ |= s->bytes[i] ^ other.bytes[i];
    /* The compiler cannot know that it will never change again. */
    __asm__ volatile ("" : "+r" (differ));
  }
  secret_wipe (&other);
  return differ == 0;
}

void
secret_wipe (struct secret *s)
{
  explicit_bzero (s, sizeof *s);
}
