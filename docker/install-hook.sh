#!/bin/sh
# Puts the hook where every Python of the image finds it, whatever flags it is started with.
set -eu

box=/opt/reprobox/lib/reprobox/box
stdlib=$(/usr/bin/python3 -IS -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')

# site imports sitecustomize from the standard library's folder even under -I and -E, which read no PYTHONPATH. Its old
# bytecode goes, since bytecode that is never checked would win over the new file.
rm -f "$stdlib"/__pycache__/sitecustomize.*.pyc "$stdlib"/encodings/__pycache__/__init__.*.pyc
ln -sfn $box/site/sitecustomize.py "$stdlib/sitecustomize.py"

# -S runs no site at all; encodings is what every start imports. A failure there must not stop an interpreter.
cat >>"$stdlib/encodings/__init__.py" <<END

# reprobox: reaches interpreters that are started without site
try:
    exec(
        sys.modules["_frozen_importlib_external"].SourceFileLoader("_reprobox_early", "$box/early.py").get_code(
            "_reprobox_early"
        ),
        {"__name__": "_reprobox_early", "__file__": "$box/early.py"},
    )
except Exception as error:
    sys.stderr and sys.stderr.write(f"reprobox: this interpreter was not reached: {error}\\n")
END

# Forced, since the interpreter that compiles has imported encodings itself by then, and left bytecode with a date.
PYTHONHASHSEED=0 /usr/bin/python3 -IS -m compileall -q -f --invalidation-mode unchecked-hash \
    "$stdlib/sitecustomize.py" "$stdlib/encodings/__init__.py"
