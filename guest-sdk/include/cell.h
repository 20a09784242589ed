/*
 * cell.h: the guest ABI of Cell, version 1, for cells written in C.
 *
 * SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * A cell is a WebAssembly reactor: a module without `_start` that exports `memory` and the
 * functions under "Exports", and carries a custom section `cell:interface`.
 * All numbers are little-endian; addresses and lengths are bytes in the module's one memory.
 * docs/GUEST-ABI.md is the specification; samples/hello-c is a cell that uses this header.
 *
 *   clang --target=wasm32 -nostdlib -O2 -I guest-sdk/include -Wl,--no-entry -o cell.wasm cell.c
 */
#ifndef CELL_H
#define CELL_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CELL_EXPORT(name) __attribute__((export_name(name)))
#define CELL_IMPORT(name) __attribute__((import_module("cell_v1"), import_name(name)))

/*
 * Interface
 *
 * CELL_INTERFACE(TEXT) puts text into the section `cell:interface`. Use it once, at file scope,
 * in one source file, with one block per receptor and an empty line after each:
 *
 *   CELL_INTERFACE("receptor greet(bytes) -> bytes\n\n"
 *                  "receptor shout(bytes) -> bytes\n\n");
 *
 * The first line of a block is `receptor NAME(INPUT) -> OUTPUT`; the lines after it may define
 * types. The nucleus reads the names only, and compares and shows the rest.
 * A receptor's number is its position, from 0, when all names are sorted by their bytes.
 * Limits: 64 KiB for the section, 256 receptors, names of 1 to 64 characters a-z 0-9 _ that
 * start with a letter.
 *
 * The assembler reads the text again, so it may hold no quote, and no backslash but that of \n.
 * (A variable in that section would do too, but compilers before LLVM 15 make it data.)
 */
#define CELL_INTERFACE(text)                                            \
    __asm__(".section \".custom_section.cell:interface\",\"\",@\n"       \
            ".ascii " #text "\n"                                        \
            ".text\n")

/*
 * Exports: what the nucleus calls. A cell defines these.
 */

/* Optional: called once, before anything else, to set the cell up. */
CELL_EXPORT("_initialize") void cell_initialize(void);

/*
 * The 16-aligned address of `len` writable bytes for the next request, or 0 if that is too large.
 * The nucleus writes the request there and calls cell_receive.
 */
CELL_EXPORT("cell_mailbox") uint32_t cell_mailbox(uint32_t len);

/*
 * Handles the request of `len` bytes at `request` for the receptor with this number.
 * Returns cell_reply(address, length); the reply stays valid until the next call of either
 * function. CELL_BAD_REQUEST says that the request is not a valid value of the input type.
 * After cell_reject the result does not matter, as long as it is not CELL_BAD_REQUEST.
 */
CELL_EXPORT("cell_receive")
uint64_t cell_receive(uint32_t receptor, uint32_t request, uint32_t len);

/*
 * Optional: the same with JSON text on both sides; without it JSON callers get `NoJson`.
 * For text that does not fit, reject with CELL_BAD_JSON and a message that says why, and return
 * CELL_BAD_REQUEST: the caller gets `BadRequest` with that message.
 */
CELL_EXPORT("cell_receive_json")
uint64_t cell_receive_json(uint32_t receptor, uint32_t request, uint32_t len);

#define CELL_BAD_REQUEST UINT64_MAX
#define CELL_BAD_JSON UINT32_MAX

/* The result of cell_receive for a reply of `len` bytes at `address`. */
static inline uint64_t cell_reply(const void *address, uint32_t len)
{
    return (uint64_t)len << 32 | (uint32_t)(uintptr_t)address;
}

/*
 * Imports: what the cell may call. Every import costs fuel before it works.
 * A range that does not lie in memory traps.
 */

/* What the nucleus tells about a call. */
struct cell_context {
    uint8_t caller[32];     /* account of the payer */
    uint64_t started_at_ns; /* wall clock at the call's start, since 1970 */
    uint64_t left_ns;       /* until the call is cut off */
    uint32_t depth;         /* 0 from outside, +1 per cell in between */
    uint32_t reserved[3];   /* zero */
};
#ifndef __cplusplus
_Static_assert(sizeof(struct cell_context) == 64, "the call context has 64 bytes");
#endif

/* Writes the context of this call. */
CELL_IMPORT("context") void cell_context(struct cell_context *out);

/* Fuel that this call may still burn. */
CELL_IMPORT("fuel_left") uint64_t cell_fuel_left(void);

enum cell_level { CELL_ERROR = 1, CELL_WARN = 2, CELL_INFO = 3, CELL_DEBUG = 4 };

/* Writes one record, in UTF-8, to the cell's log. */
CELL_IMPORT("log") void cell_log(uint32_t level, const void *text, uint32_t text_len);

/* Ends the call with a code and a UTF-8 message, once cell_receive returns. */
CELL_IMPORT("reject")
void cell_reject(uint32_t code, const void *message, uint32_t message_len);

/*
 * Calls a receptor of another cell and waits.
 *
 * `schema` is the interface block the caller was built against; length 0 calls untyped.
 * `fuel` is the most the callee may burn: it is cut to what is left, and what the callee burns is
 * taken from it. Returns the reply's length in the low 32 bits and a status in the high 32 bits.
 * CELL_OK: the reply is the answer. CELL_REJECTED: it is a reject, 4 bytes of code and a message.
 * Any other status, see docs/PROTOCOL.md: it is a message for people.
 */
CELL_IMPORT("call")
uint64_t cell_call(const void *cell, uint32_t cell_len,
                   const void *receptor, uint32_t receptor_len,
                   const void *schema, uint32_t schema_len,
                   const void *request, uint32_t request_len,
                   uint64_t fuel);

#define CELL_OK 0u
#define CELL_REJECTED 16u

static inline uint32_t cell_call_status(uint64_t ended) { return (uint32_t)(ended >> 32); }
static inline uint32_t cell_call_reply_len(uint64_t ended) { return (uint32_t)ended; }

/* Copies the last reply, at most `len` bytes; returns how many. */
CELL_IMPORT("call_reply") uint32_t cell_call_reply(void *out, uint32_t len);

/*
 * Key-value state. It belongs to the cell, not to the instance. A call sees its own writes; others
 * see them, all at once, when the handler returns without a reject. From its first cell_kv_ call
 * to its end a call holds the state alone.
 */

/* The length of the value, or -1 if there is none. */
CELL_IMPORT("kv_get") int64_t cell_kv_get(const void *key, uint32_t key_len);

/* Copies the value that the last cell_kv_get found, at most `len` bytes; returns how many. */
CELL_IMPORT("kv_value") uint32_t cell_kv_value(void *out, uint32_t len);

/* Writes a value; 0, or 1 if the quota would be passed. */
CELL_IMPORT("kv_set")
uint32_t cell_kv_set(const void *key, uint32_t key_len, const void *value, uint32_t value_len);

/* Removes a value; 1 if there was one, else 0. */
CELL_IMPORT("kv_delete") uint32_t cell_kv_delete(const void *key, uint32_t key_len);

#ifdef __cplusplus
}
#endif

#endif /* CELL_H */
