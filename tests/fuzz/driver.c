/* driver.c - a main() for a fuzz target, for any compiler: runs every file named, and every file of a directory named. */
#include "fuzz.h"

#include <dirent.h>
#include <sys/stat.h>

static void replay(const char *path)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    if (!f || fstat(fileno(f), &st) < 0) {
        perror(path);
        exit(1);
    }
    size_t size = (size_t)st.st_size;
    uint8_t *data = fuzz_memory(size);
    PROMISE(fread(data, 1, size, f) == size, "a seed can be read");
    fclose(f);
    /* said before, so that the last one said is the one that crashed */
    fprintf(stderr, "%s\n", path);
    LLVMFuzzerTestOneInput(data, size);
    free(data);
}

static void replay_all(const char *path)
{
    DIR *d = opendir(path);
    if (!d) {
        replay(path);
        return;
    }
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        char file[8192];
        if (e->d_name[0] != '.' && snprintf(file, sizeof file, "%s/%s", path, e->d_name) < (int)sizeof file)
            replay(file);
    }
    closedir(d);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        replay_all(argv[i]);
    return 0;
}
