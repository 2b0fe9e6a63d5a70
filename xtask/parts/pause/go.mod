module netdiag.dev/part/pause

go 1.24
