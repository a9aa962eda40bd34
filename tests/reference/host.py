"""`train.main` as one of several processes, which tells at its end what it holds."""

from stablesam_jax import parallel, params
from train import main

asked = []  # of the other hosts, during the steps
ask = parallel.on_any_host


def tell(run, console, config, result, **options):
    print("digest", params.digest(result["plugin"]), flush=True)
    print(f"asked {len(asked)} times", flush=True)
    return ""


def count(flag):
    asked.append(flag)
    return ask(flag)


parallel.on_any_host = count


main.save_result = tell
main.report = main.tell_use = lambda *_: None

if __name__ == "__main__":
    main.main()
