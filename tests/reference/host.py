"""`train.main` as one of several processes, which tells at its end what it holds."""

from stablesam_jax import params
from train import main


def tell(run, console, config, result, **options):
    print("digest", params.digest(result["plugin"]), flush=True)
    return ""


main.save_result = tell
main.report = main.tell_use = lambda *_: None

if __name__ == "__main__":
    main.main()
