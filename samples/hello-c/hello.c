/*
 * A cell in C, without a C library: `cell call hello-c.greet --raw Ada` answers `Hello, Ada!`.
 */
#include "cell.h"

CELL_INTERFACE("receptor greet(bytes) -> bytes\n\n");

#define REQUEST_BYTES_MAX 4096u
#define EMPTY_NAME 1u

static const char before[] = "Hello, ";
static const char after[] = "!";
static const char nobody[] = "a greeting needs a name";

static _Alignas(16) char request[REQUEST_BYTES_MAX];
static char reply[sizeof before + REQUEST_BYTES_MAX + sizeof after];

uint32_t cell_mailbox(uint32_t len)
{
    return len <= sizeof request ? (uint32_t)(uintptr_t)request : 0;
}

static uint32_t append(uint32_t at, const char *text, uint32_t len)
{
    __builtin_memcpy(reply + at, text, len);
    return at + len;
}

uint64_t cell_receive(uint32_t receptor, uint32_t address, uint32_t len)
{
    (void)receptor; /* There is one. */
    (void)address;  /* It is where cell_mailbox said. */
    if (len == 0) {
        cell_reject(EMPTY_NAME, nobody, sizeof nobody - 1);
        return 0;
    }
    uint32_t end = append(0, before, sizeof before - 1);
    end = append(end, request, len);
    end = append(end, after, sizeof after - 1);
    return cell_reply(reply, end);
}
