# SPDX-License-Identifier: BSD-3-Clause
# journal/format.h -> a C file with its structures as tables (unit/format-fields.h).

BEGIN {
    print "/* SPDX-License-Identifier: BSD-3-Clause */"
    print "/* Made from journal/format.h by format-fields.awk. */"
    print "#include \"config.h\""
    print ""
    print "#include \"unit/format-fields.h\""
    print ""
    print "#define F(type, name) { #name, offsetof (struct format_##type, name), \\"
    print "    sizeof (((struct format_##type *) NULL)->name) }"
    print ""
}

/^struct format_[a-z]+ \{$/ {
    name = $2
    sub("^format_", "", name)
    structs[++n] = name
    print "static const struct format_field " name "_fields[] = {"
    next
}

name != "" && /^\};/ {
    print "};\n"
    name = ""
    next
}

name != "" {
    gsub("/[*].*[*]/", "")              # comments stay on their line
    sub(";.*", "")
    # Without the type, which is one word, or "struct" and one.
    sub("^ *(struct )?[a-z0-9_]+ ", "")
    count = split($0, field, ",")
    for (i = 1; i <= count; i++) {
        sub("\\[.*", "", field[i])
        gsub(" ", "", field[i])
        if (field[i] != "")
            print "  F (" name ", " field[i] "),"
    }
}

END {
    print "const struct format_fields format_fields[] = {"
    for (i = 1; i <= n; i++)
        print "  { \"" structs[i] "\", sizeof (struct format_" structs[i] "), " \
            structs[i] "_fields,\n    sizeof " structs[i] "_fields / sizeof " structs[i] "_fields[0] },"
    print "  { NULL, 0, NULL, 0 },"
    print "};"
}
