// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * libelf.a of elfutils 0.192 (Debian 13) calls these two and does not hold
 * them: they are in a library that is not shipped. They prepare and free the
 * tree of an Elf's raw chunks, which stays empty, zeroed by calloc, unless
 * elf_getdata_rawchunk() is used, and libbpf does not use it. A libelf.a that
 * holds them prevails over these, which are weak.
 */
__attribute__((weak)) void eu_search_tree_init(void *tree)
{
}

__attribute__((weak)) void eu_search_tree_fini(void *tree,
					       void (*free_node)(void *))
{
}
