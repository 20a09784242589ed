/* Counts lines, words and bytes of standard input: a C program that knows nothing of Cell. */
#include <stdio.h>

int main(void)
{
    long lines = 0, words = 0, bytes = 0;
    int within = 0;
    for (int c; (c = getchar()) != EOF; bytes++) {
        int space = c == ' ' || c == '\n' || c == '\t';
        lines += c == '\n';
        words += !space && !within;
        within = !space;
    }
    printf("%ld %ld %ld\n", lines, words, bytes);
    return 0;
}
