/* SPDX-License-Identifier: BSD-3-Clause */
/* common/secret.h.  Under valgrind the secret counts as not initialised: then a
 * branch or an address that depends on it is an error (Langley's ctgrind).
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#if __has_include (<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#else
#define VALGRIND_MAKE_MEM_UNDEFINED(p, n) ((void) (p), (n))
#define VALGRIND_MAKE_MEM_DEFINED(p, n) ((void) (p), (n))
#endif

#include "common/secret.h"
#include "unit/unit.h"

static bool
is (const char *secret, const char *text, size_t len)
{
  struct secret s;
  bool result;

  EXPECT (secret_set (&s, secret) == 0);
  (void) VALGRIND_MAKE_MEM_UNDEFINED (&s, sizeof s);
  result = secret_is (&s, text, len);
  (void) VALGRIND_MAKE_MEM_DEFINED (&result, sizeof result);
  (void) VALGRIND_MAKE_MEM_DEFINED (&s, sizeof s);
  secret_wipe (&s);
  for (size_t i = 0; i < sizeof s.bytes; i++)
    EXPECT (s.bytes[i] == 0);
  return result;
}

START_TEST (test_compare)
{
  char longest[SECRET_MAX + 8];

  EXPECT (is ("secret", "secret", 6));
  EXPECT (!is ("secret", "secret", 5));
  EXPECT (!is ("secret", "secretx", 7));
  EXPECT (!is ("secret", "Secret", 6));
  EXPECT (!is ("secret", "secreT", 6));
  EXPECT (!is ("secret", "", 0));
  EXPECT (!is ("secret", "secret\0", 7));
  EXPECT (!is ("secret", "secret\0x", 8));
  EXPECT (is ("two words", "two words", 9));
  EXPECT (is ("\xff\xfe", "\xff\xfe", 2));

  memset (longest, 'x', sizeof longest);
  longest[SECRET_MAX - 1] = '\0';
  EXPECT (is (longest, longest, SECRET_MAX - 1));
  for (size_t i = 0; i < SECRET_MAX - 1; i += 31) {
    char other[SECRET_MAX];

    memcpy (other, longest, sizeof other);
    other[i] ^= 1;
    EXPECT (!is (longest, other, SECRET_MAX - 1));
  }
  longest[SECRET_MAX - 1] = 'x';
  for (size_t len = SECRET_MAX - 1; len < sizeof longest; len++)
    EXPECT (!is ("x", longest, len));
}
END_TEST

START_TEST (test_set)
{
  static const char *const bad[] = { "", "a\nb", "\t", "\x7f", "a\r" };
  char longest[SECRET_MAX + 1];
  struct secret s;

  for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
    errno = 0;
    EXPECT (secret_set (&s, bad[i]) == -1 && errno == EINVAL);
  }
  memset (longest, 'x', SECRET_MAX);
  longest[SECRET_MAX] = '\0';
  EXPECT (secret_set (&s, longest) == -1);
  EXPECT (secret_set (&s, longest + 1) == 0);
  /* Nothing is left of a longer one of before. */
  EXPECT (secret_set (&s, "short") == 0);
  EXPECT (secret_is (&s, "short", 5));
}
END_TEST

int
main (void)
{
  Suite *s = suite_create ("secret");
  TCase *tc = tcase_create ("secret");

  tcase_set_timeout (tc, 120);
  tcase_add_test (tc, test_compare);
  tcase_add_test (tc, test_set);
  suite_add_tcase (s, tc);
  return unit_run (s);
}
