"""Running passes: pipelines as text (``read``), what a pass is (``passes``), where they are found
(``registry``), what is put around them (``instruments``) and the loop itself (``run``)."""
