/*
 * lib.c - the little that C needs without a library: memory, text, the command line,
 * COM1 output, JSON lines, latency histograms, and the end of the machine.
 */
#include "bare.h"

void *memset(void *d, int c, size_t n)
{
	void *p = d;
	__asm__ volatile("rep stosb" : "+D"(p), "+c"(n) : "a"(c) : "memory");
	return d;
}

void *memcpy(void *d, const void *s, size_t n)
{
	void *p = d;
	__asm__ volatile("rep movsb" : "+D"(p), "+S"(s), "+c"(n)::"memory");
	return d;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const u8 *x = a, *y = b;
	for (; n; n--, x++, y++)
		if (*x != *y)
			return *x - *y;
	return 0;
}

size_t str_len(const char *s)
{
	size_t n = 0;
	while (s[n])
		n++;
	return n;
}

int str_equal(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

int str_starts(const char *s, const char *prefix)
{
	while (*prefix)
		if (*s++ != *prefix++)
			return 0;
	return 1;
}

u64 parse_number(const char *s, const char **end)
{
	u64 v = 0;
	if (s[0] == '0' && s[1] == 'x') {
		for (s += 2;; s++) {
			if (*s >= '0' && *s <= '9')
				v = v * 16 + (*s - '0');
			else if (*s >= 'a' && *s <= 'f')
				v = v * 16 + (*s - 'a' + 10);
			else if (*s >= 'A' && *s <= 'F')
				v = v * 16 + (*s - 'A' + 10);
			else
				break;
		}
	} else {
		for (; *s >= '0' && *s <= '9'; s++)
			v = v * 10 + (*s - '0');
	}
	switch (*s) {
	case 'G': v *= 1024; /* fall through */
	case 'M': v *= 1024; /* fall through */
	case 'K': v *= 1024; s++;
	}
	if (end)
		*end = s;
	return v;
}

/* ---- command line: words of key=value ---- */

char cmdline[4096];

/* The value of the first word with this key, up to a space. */
static const char *arg_find(const char *key)
{
	size_t n = str_len(key);
	for (const char *p = cmdline; *p;) {
		while (*p == ' ')
			p++;
		if (str_starts(p, key) && p[n] == '=')
			return p + n + 1;
		while (*p && *p != ' ')
			p++;
	}
	return NULL;
}

u64 arg_u64(const char *key, u64 otherwise)
{
	const char *v = arg_find(key);
	return v ? parse_number(v, NULL) : otherwise;
}

int arg_str(const char *key, char *out, size_t room)
{
	const char *v = arg_find(key);
	size_t n = 0;
	if (v)
		for (; v[n] && v[n] != ' ' && n + 1 < room; n++)
			out[n] = v[n];
	out[n] = 0;
	return v != NULL;
}

int arg_is(const char *key, const char *value)
{
	char v[64];
	return arg_str(key, v, sizeof v) && str_equal(v, value);
}

/* ---- output ---- */

static void put(char c)
{
	while (!(inb(COM1 + 5) & 0x20))	/* line status: transmitter takes a byte */
		cpu_pause();
	outb(COM1, c);
}

static void put_number(u64 v, u32 base)
{
	char digits[24];
	int n = 0;
	do {
		digits[n++] = "0123456789abcdef"[v % base];
		v /= base;
	} while (v);
	while (n)
		put(digits[--n]);
}

static void print_args(const char *fmt, va_list ap)
{
	for (; *fmt; fmt++) {
		if (*fmt != '%') {
			put(*fmt);
			continue;
		}
		int wide = *++fmt == 'l';
		if (wide)
			fmt++;
		u64 v;
		switch (*fmt) {
		case 's':
			for (const char *s = va_arg(ap, const char *); *s; s++)
				put(*s);
			break;
		case 'c':
			put((char)va_arg(ap, int));
			break;
		case 'd': {
			int d = va_arg(ap, int);
			if (d < 0)
				put('-');
			put_number(d < 0 ? -(u64)d : (u64)d, 10);
			break;
		}
		case 'u':
		case 'x':
			v = wide ? va_arg(ap, u64) : va_arg(ap, u32);
			put_number(v, *fmt == 'u' ? 10 : 16);
			break;
		default:
			put('%');
		}
	}
}

void print(const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	print_args(fmt, ap);
	va_end(ap);
}

static int json_comma;

static void json_key(const char *key)
{
	print("%s\"%s\":", json_comma ? "," : "", key);
	json_comma = 1;
}

void json_open(const char *test)
{
	put('{');
	json_comma = 0;
	json_str("test", test);
}

void json_u64(const char *key, u64 v)
{
	json_key(key);
	put_number(v, 10);
}

/* v holds no character that JSON would escape: all of them are literals of this program. */
void json_str(const char *key, const char *v)
{
	json_key(key);
	print("\"%s\"", v);
}

void json_close(int ok)
{
	json_key("ok");
	print("%s}\n", ok ? "true" : "false");
}

/*
 * The end of the machine, in the ways that VMMs offer, most wanted first: ACPI S5 by the PM1a control
 * register of docs/machine-v1.md, QEMU's isa-debug-exit (exit status 1 when well, 3 when not), reset.
 */
void finish(int ok)
{
	outw(0x604, 5 << 10 | 1 << 13);	/* SLP_TYP 5, SLP_EN */
	outl(0xf4, ok ? 0 : 1);
	outb(0xcf9, 6);
	for (;;)
		cpu_pause();
}

void fail(const char *fmt, ...)
{
	va_list ap;
	print("\n{\"test\":\"fail\",\"why\":\"");
	va_start(ap, fmt);
	print_args(fmt, ap);
	va_end(ap);
	print("\",\"ok\":false}\n");
	finish(0);
}

/* ---- memory ---- */

struct ram_range ram[16];
int ram_ranges;
static u64 alloc_next = 16 * MIB, alloc_end;

struct hvm_start_info {	/* Xen's public/arch-x86/hvm/start_info.h, version 1 */
	u32 magic, version, flags, nr_modules;
	u64 modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr;
	u32 memmap_entries, reserved;
};
struct hvm_memmap_entry { u64 addr, size; u32 type, reserved; };

void memory_setup(void)
{
	extern u64 start_info;
	const struct hvm_start_info *si = (const void *)start_info;
	if (si->magic != 0x336ec578)
		fail("start info at %lx has magic %x", start_info, si->magic);
	const char *c = (const char *)si->cmdline_paddr;
	for (size_t i = 0; c && c[i] && i + 1 < sizeof cmdline; i++)
		cmdline[i] = c[i];
	const struct hvm_memmap_entry *e = (const void *)si->memmap_paddr;
	for (u32 i = 0; si->version >= 1 && e && i < si->memmap_entries && ram_ranges < (int)ARRAY_LEN(ram); i++) {
		if (e[i].type != 1)
			continue;
		ram[ram_ranges++] = (struct ram_range){e[i].addr, e[i].addr + e[i].size};
		if (e[i].addr <= alloc_next && e[i].addr + e[i].size > alloc_next)
			alloc_end = e[i].addr + e[i].size;
	}
	if (!alloc_end)
		fail("the memory map of %u entries has no RAM at 16 MiB", si->memmap_entries);
}

u64 ram_end(void) { return alloc_end; }

void *alloc(u64 bytes, u64 align)
{
	u64 a = (alloc_next + align - 1) & ~(align - 1);
	if (bytes > alloc_end || a > alloc_end - bytes)
		fail("no room for %lu bytes in %lu MiB of RAM", bytes, alloc_end / MIB);
	alloc_next = a + bytes;
	return memset((void *)a, 0, bytes);
}

/* ---- latencies ---- */

void histogram_add(struct histogram *h, u64 ns)
{
	u64 v = ns | 8;
	int msb = 63 - __builtin_clzll(v);
	h->bucket[msb * 8 + (v >> (msb - 3) & 7)]++;
	h->n++;
	h->max = MAX(h->max, ns);
}

void histogram_merge(struct histogram *into, const struct histogram *from)
{
	for (size_t i = 0; i < ARRAY_LEN(into->bucket); i++)
		into->bucket[i] += from->bucket[i];
	into->n += from->n;
	into->max = MAX(into->max, from->max);
}

/* The upper edge of the bucket that holds this share of the values. */
u64 histogram_at(const struct histogram *h, u32 per_mille)
{
	u64 want = h->n * per_mille / 1000, seen = 0;
	for (size_t i = 0; i < ARRAY_LEN(h->bucket); i++) {
		seen += h->bucket[i];
		if (seen > want)
			return MIN(h->max, (8 + i % 8 + 1) << (i / 8 - 3));
	}
	return h->max;
}

void json_histogram(const struct histogram *h)
{
	if (!h->n)
		return;
	json_u64("p50_ns", histogram_at(h, 500));
	json_u64("p99_ns", histogram_at(h, 990));
	json_u64("p999_ns", histogram_at(h, 999));
	json_u64("max_ns", h->max);
}
